// checkpoint-flags: --tcp-established
// peer: no, CRIU runs nft(8) and conntrack for it
/*
 * A process with a network namespace of its own, in which the addresses of a connection of TCP and of datagrams are
 * translated. The rules that had it so are gone: only what the kernel tracks knows of it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>

#include "workload.h"

static void run(const char *command)
{
	int status = system(command);

	if (status != 0)
		wl_fail("%s: %x", command, status);
}

static struct sockaddr_in at(const char *address, int port)
{
	struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &name.sin_addr);
	return name;
}

static int bound(int type, int port)
{
	struct sockaddr_in name = at("127.0.0.2", port);
	struct timeval limit = { .tv_sec = 10 };
	int fd = MUST(socket(AF_INET, type, 0));

	MUST(bind(fd, (struct sockaddr *)&name, sizeof(name)));
	MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	return fd;
}

static int connected(int type, int port)
{
	struct sockaddr_in name = at("127.0.0.1", port);
	int fd = MUST(socket(AF_INET, type, 0));

	MUST(connect(fd, (struct sockaddr *)&name, sizeof(name)));
	return fd;
}

/* A byte from one to the other. */
static void pass(int from, int to, char what)
{
	char got = 0;

	MUST(write(from, &what, 1));
	if (read(to, &got, 1) != 1 || got != what)
		wl_fail("%c does not arrive: %s", what, strerror(errno));
}

/* Where it came from, of a datagram. */
static struct sockaddr_in from_whom(int fd)
{
	struct sockaddr_in name;
	socklen_t size = sizeof(name);
	char got;

	if (recvfrom(fd, &got, 1, 0, (struct sockaddr *)&name, &size) != 1)
		wl_fail("no datagram arrives: %s", strerror(errno));
	return name;
}

int main(int argc, char **argv)
{
	int listener, server, client, datagrams, sender;
	struct sockaddr_in peer;

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWNET));
	run("ip link set lo up");
	run("nft add table ip wl; nft add chain ip wl out '{ type nat hook output priority -100; }'");
	run("nft add chain ip wl post '{ type nat hook postrouting priority 100; }'");
	run("nft add rule ip wl out tcp dport 8000 dnat to 127.0.0.2:9000");
	run("nft add rule ip wl out udp dport 8000 dnat to 127.0.0.2:9000");
	run("nft add rule ip wl post udp dport 9000 snat to 127.0.0.3:7000");
	listener = bound(SOCK_STREAM, 9000);
	MUST(listen(listener, 5));
	client = connected(SOCK_STREAM, 8000);
	server = MUST(accept(listener, NULL, NULL));
	pass(client, server, 'a');
	pass(server, client, 'b');
	datagrams = bound(SOCK_DGRAM, 9000);
	sender = connected(SOCK_DGRAM, 8000);
	MUST(write(sender, "c", 1));
	peer = from_whom(datagrams);
	MUST(sendto(datagrams, "d", 1, 0, (struct sockaddr *)&peer, sizeof(peer)));
	from_whom(sender);
	/* Nothing is tracked any more where no rule wants it. */
	run("nft flush table ip wl; nft add rule ip wl out tcp dport 1 dnat to 127.0.0.2:1");
	wl_ready();
	if (wl_lose)
		run("nft delete table ip wl");
	pass(client, server, 'e');
	pass(server, client, 'f');
	MUST(write(sender, "g", 1));
	peer = from_whom(datagrams);
	CHECK(peer.sin_port == htons(7000), "the datagram is from port %d", ntohs(peer.sin_port));
	MUST(sendto(datagrams, "h", 1, 0, (struct sockaddr *)&peer, sizeof(peer)));
	from_whom(sender);
	wl_ok();
}
