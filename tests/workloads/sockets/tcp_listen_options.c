// peer: no, CRIU 4.2 loses these options, and who owns a socket
/* TCP sockets that listen, with options that few set; a group at one port that belongs to another user. */
#include "net.h"

/* Not told from the headers of older systems. */
#define SO_BUSY_POLL_ 46
#define TCP_SAVE_SYN_ 27

static const struct {
	const char *name;
	int level, option, value, told;
} numbers[] = {
	{ "TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 4321, 4321 },
	{ "TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 4, 4 },
	{ "TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 17, 17 },
	{ "TCP_MAXSEG", IPPROTO_TCP, TCP_MAXSEG, 900, 900 },
	{ "TCP_WINDOW_CLAMP", IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000, 30000 },
	{ "TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 5000, 5000 },
	{ "TCP_DEFER_ACCEPT", IPPROTO_TCP, TCP_DEFER_ACCEPT, 3, 3 },
	{ "TCP_FASTOPEN", IPPROTO_TCP, TCP_FASTOPEN, 6, 6 },
	{ "TCP_SAVE_SYN", IPPROTO_TCP, TCP_SAVE_SYN_, 1, 1 },
	{ "IP_MINTTL", IPPROTO_IP, IP_MINTTL, 3, 3 },
	{ "IP_TRANSPARENT", IPPROTO_IP, IP_TRANSPARENT, 1, 1 },
	{ "IP_BIND_ADDRESS_NO_PORT", IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, 1 },
	{ "SO_BUSY_POLL", SOL_SOCKET, SO_BUSY_POLL_, 20, 20 },
	{ "SO_INCOMING_CPU", SOL_SOCKET, SO_INCOMING_CPU, 0, 0 },
	{ "SO_TIMESTAMPNS", SOL_SOCKET, SO_TIMESTAMPNS, 1, 1 },
};
#define NUMBERS (sizeof(numbers) / sizeof(numbers[0]))

int main(int argc, char **argv)
{
	struct sockaddr_storage address = net_loopback(AF_INET, 0);
	unsigned char options[4] = { 1, 1, 1, 0 }, got[40];
	int set, group[2], port;
	char name[16] = "";
	socklen_t size = sizeof(name);
	struct stat stat;

	wl_init(argc, argv);
	set = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	MUST(setsockopt(set, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	MUST(setsockopt(set, IPPROTO_IP, IP_OPTIONS, options, sizeof(options)));
	for (size_t i = 0; i < NUMBERS; i++)
		net_set(set, numbers[i].level, numbers[i].option, numbers[i].value);
	MUST(bind(set, (struct sockaddr *)&address, net_size(AF_INET)));
	MUST(listen(set, 100));
	/* Who shares a port must be the same user. */
	MUST(seteuid(1234));
	for (int i = 0; i < 2; i++) {
		address = net_loopback(AF_INET, i ? net_port(group[0]) : 0);
		group[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
		net_set(group[i], SOL_SOCKET, SO_REUSEPORT, 1);
		MUST(bind(group[i], (struct sockaddr *)&address, net_size(AF_INET)));
		MUST(listen(group[i], 10 + i));
	}
	MUST(seteuid(0));
	port = net_port(group[0]);

	wl_ready();
	if (wl_lose)
		net_set(set, IPPROTO_TCP, TCP_LINGER2, 18);
	for (size_t i = 0; i < NUMBERS; i++)
		CHECK(net_get(set, numbers[i].level, numbers[i].option) == numbers[i].told, "%s is %d", numbers[i].name,
		      net_get(set, numbers[i].level, numbers[i].option));
	MUST(getsockopt(set, IPPROTO_TCP, TCP_CONGESTION, name, &size));
	CHECK(strcmp(name, "reno") == 0, "its congestion control is '%s'", name);
	size = sizeof(got);
	MUST(getsockopt(set, IPPROTO_IP, IP_OPTIONS, got, &size));
	CHECK(size == sizeof(options) && memcmp(got, options, size) == 0, "IP_OPTIONS are %d bytes", size);
	CHECK(net_port(group[0]) == port && net_port(group[1]) == port, "the group at one port has fallen apart");
	MUST(fstat(group[1], &stat));
	CHECK(stat.st_uid == 1234, "it belongs to user %d", stat.st_uid);
	/* The owner still can have another one there, others cannot. */
	address = net_loopback(AF_INET, port);
	close(group[1]);
	group[1] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_set(group[1], SOL_SOCKET, SO_REUSEPORT, 1);
	CHECK(bind(group[1], (struct sockaddr *)&address, net_size(AF_INET)) == -1, "anybody can come to the port");
	MUST(fchown(group[1], 1234, -1));
	CHECK(bind(group[1], (struct sockaddr *)&address, net_size(AF_INET)) == 0, "its owner cannot come to the port");
	wl_ok();
}
