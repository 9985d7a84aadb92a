// flags: --tcp-established
// peer: no, CRIU 4.2 loses the keys
// differs: descriptor socket.diag.tcp.*, what was counted
// differs: descriptor socket.diag.received, an end that was read counts as unread again
// differs: descriptor socket.IPPROTO_TCP.10, the window that is told changes with what arrives
/* Packets that are signed by keys (TCP-MD5): of sockets that listen, of connections, of half a one. */
#include <linux/tcp.h>
#define _NETINET_TCP_H 1

#include <arpa/inet.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "workload.h"

static struct sockaddr_storage loopback(int family, int port)
{
	struct sockaddr_storage address = { .ss_family = family };

	if (family == AF_INET) {
		((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		((struct sockaddr_in *)&address)->sin_port = htons(port);
	} else {
		((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
		((struct sockaddr_in6 *)&address)->sin6_port = htons(port);
	}
	return address;
}

static socklen_t size_of(int family)
{
	return family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static void sign(int fd, int family, const char *key)
{
	struct tcp_md5sig md5 = { .tcpm_flags = TCP_MD5SIG_FLAG_PREFIX, .tcpm_prefixlen = family == AF_INET ? 8 : 128 };
	struct sockaddr_storage address = loopback(family, 0);

	memcpy(&md5.tcpm_addr, &address, sizeof(address));
	md5.tcpm_keylen = strlen(key);
	memcpy(md5.tcpm_key, key, md5.tcpm_keylen);
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG_EXT, &md5, sizeof(md5)));
}

static int port_of(int fd)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);

	MUST(getsockname(fd, (struct sockaddr *)&address, &size));
	return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

static void start(int listener, int family, const char *key, int ends[2])
{
	struct sockaddr_storage address = loopback(family, port_of(listener));

	ends[0] = MUST(socket(family, SOCK_STREAM, 0));
	sign(ends[0], family, key);
	MUST(connect(ends[0], (struct sockaddr *)&address, size_of(family)));
	ends[1] = MUST(accept(listener, NULL, NULL));
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int listeners[2], ends[2][2], halves[2][2], later[2];
	char got[8];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		struct sockaddr_storage address = loopback(families[i], 0);

		listeners[i] = MUST(socket(families[i], SOCK_STREAM, 0));
		MUST(bind(listeners[i], (struct sockaddr *)&address, size_of(families[i])));
		sign(listeners[i], families[i], "a secret");
		MUST(listen(listeners[i], 4));
		start(listeners[i], families[i], "a secret", ends[i]);
		start(listeners[i], families[i], "a secret", halves[i]);
		MUST(shutdown(halves[i][0], SHUT_WR));
		CHECK(recv(halves[i][1], got, 1, 0) == 0, "no end");
	}

	wl_ready();
	if (wl_lose)
		sign(listeners[1], AF_INET6, "another");
	for (int i = 0; i < 2; i++) {
		/* Who signs otherwise is not heard. */
		struct sockaddr_storage address = loopback(families[i], port_of(listeners[i]));
		int stranger = MUST(socket(families[i], SOCK_STREAM | SOCK_NONBLOCK, 0));
		struct pollfd asked = { .fd = stranger, .events = POLLOUT };

		CHECK(connect(stranger, (struct sockaddr *)&address, size_of(families[i])) < 0 && errno == EINPROGRESS, "connect: %s",
		      strerror(errno));
		CHECK(poll(&asked, 1, 50) == 0, "%d: a stranger is heard", i);
		close(stranger);
		MUST(send(ends[i][0], "hello", 5, 0));
		CHECK(recv(ends[i][1], got, 5, MSG_WAITALL) == 5, "%d: nothing arrives", i);
		MUST(send(ends[i][1], "hello", 5, 0));
		CHECK(recv(ends[i][0], got, 5, MSG_WAITALL) == 5, "%d: no answer", i);
		MUST(send(halves[i][1], "still", 5, 0));
		CHECK(recv(halves[i][0], got, 5, MSG_WAITALL) == 5, "%d: nothing arrives over half a one", i);
		asked = (struct pollfd){ .fd = listeners[i], .events = POLLIN };
		later[0] = MUST(socket(families[i], SOCK_STREAM | SOCK_NONBLOCK, 0));
		sign(later[0], families[i], "a secret");
		connect(later[0], (struct sockaddr *)&address, size_of(families[i]));
		CHECK(poll(&asked, 1, 3000) == 1, "%d: nobody can connect with the key", i);
		later[1] = MUST(accept(listeners[i], NULL, NULL));
	}
	wl_ok();
}
