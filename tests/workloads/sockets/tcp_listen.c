/* TCP sockets that listen: IPv4, IPv6 for both and for itself alone, with what a server sets; a group at one port. */
#include "net.h"

/* Not told from the headers of older systems. */
#define SO_BUF_LOCK_ 72

static int listening(int family, int backlog)
{
	int fd = net_bound(family, SOCK_STREAM | SOCK_CLOEXEC, 0, 0);

	MUST(listen(fd, backlog));
	return fd;
}

static int backlog_of(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);

	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size));
	return info.tcpi_state == TCP_LISTEN ? (int)info.tcpi_sacked : -1;
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6 };
	struct linger linger = { 1, 7 };
	socklen_t size = sizeof(linger);
	int plain, v6, only, both, set, group[3], port, ports[5];
	char name[16] = "";

	wl_init(argc, argv);
	plain = listening(AF_INET, 17);
	v6 = listening(AF_INET6, 5);
	only = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	net_set(only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	MUST(bind(only, (struct sockaddr *)&any, sizeof(any)));
	MUST(listen(only, 1));
	/* The same port, and IPv4 alone: possible because the other is for IPv6 alone. */
	both = net_bound(AF_INET, SOCK_STREAM, 0, net_port(only));
	MUST(listen(both, 3));

	set = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	net_set(set, SOL_SOCKET, SO_REUSEADDR, 1);
	net_set(set, SOL_SOCKET, SO_KEEPALIVE, 1);
	net_set(set, SOL_SOCKET, SO_OOBINLINE, 1);
	net_set(set, SOL_SOCKET, SO_MARK, 0x77);
	net_set(set, SOL_SOCKET, SO_SNDBUF, 50000);
	MUST(setsockopt(set, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	MUST(setsockopt(set, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
	net_set(set, IPPROTO_TCP, TCP_NODELAY, 1);
	net_set(set, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	net_set(set, IPPROTO_TCP, TCP_KEEPINTVL, 33);
	net_set(set, IPPROTO_TCP, TCP_KEEPCNT, 5);
	net_set(set, IPPROTO_IP, IP_TOS, 16);
	net_set(set, IPPROTO_IP, IP_TTL, 42);
	/* IP_TOS has set one as well. */
	net_set(set, SOL_SOCKET, SO_PRIORITY, 3);
	{
		struct sockaddr_storage address = net_loopback(AF_INET, 0);

		MUST(bind(set, (struct sockaddr *)&address, net_size(AF_INET)));
	}
	MUST(listen(set, 100));

	for (int i = 0; i < 3; i++) {
		struct sockaddr_storage address = net_loopback(AF_INET, i ? net_port(group[0]) : 0);

		group[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
		net_set(group[i], SOL_SOCKET, SO_REUSEPORT, 1);
		MUST(bind(group[i], (struct sockaddr *)&address, net_size(AF_INET)));
		MUST(listen(group[i], 10 + i));
	}
	port = net_port(group[0]);
	ports[0] = net_port(plain), ports[1] = net_port(v6), ports[2] = net_port(only), ports[3] = net_port(both),
	ports[4] = net_port(set);

	wl_ready();
	if (wl_lose)
		MUST(listen(plain, 18));
	CHECK(backlog_of(plain) == 17 && backlog_of(v6) == 5 && backlog_of(only) == 1 && backlog_of(both) == 3,
	      "backlogs %d %d %d %d", backlog_of(plain), backlog_of(v6), backlog_of(only), backlog_of(both));
	CHECK(net_port(plain) == ports[0] && net_port(v6) == ports[1] && net_port(only) == ports[2] &&
		      net_port(both) == ports[3] && net_port(set) == ports[4],
	      "a port is another");
	CHECK(fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(set, F_GETFL) == (O_RDWR | O_NONBLOCK), "flags are lost");
	CHECK(net_get(only, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "it is not for IPv6 alone");
	net_serves(plain, AF_INET, "the plain one");
	net_serves(v6, AF_INET6, "that of IPv6");
	net_serves(only, AF_INET6, "that of IPv6 alone");
	net_serves(both, AF_INET, "that of IPv4 beside it");
	CHECK(accept(set, NULL, NULL) < 0 && errno == EAGAIN, "it waits for a connection");

	CHECK(net_get(set, SOL_SOCKET, SO_REUSEADDR) == 1 && net_get(plain, SOL_SOCKET, SO_REUSEADDR) == 0, "SO_REUSEADDR");
	CHECK(net_get(set, SOL_SOCKET, SO_KEEPALIVE) == 1 && net_get(set, SOL_SOCKET, SO_OOBINLINE) == 1, "SO_KEEPALIVE");
	CHECK(net_get(set, SOL_SOCKET, SO_PRIORITY) == 3, "SO_PRIORITY is %d", net_get(set, SOL_SOCKET, SO_PRIORITY));
	CHECK(net_get(set, SOL_SOCKET, SO_MARK) == 0x77, "SO_MARK is %d", net_get(set, SOL_SOCKET, SO_MARK));
	CHECK(net_get(set, SOL_SOCKET, SO_SNDBUF) == 100000, "SO_SNDBUF is %d", net_get(set, SOL_SOCKET, SO_SNDBUF));
	CHECK(net_get(set, SOL_SOCKET, SO_BUF_LOCK_) == 1, "SO_BUF_LOCK is %d", net_get(set, SOL_SOCKET, SO_BUF_LOCK_));
	MUST(getsockopt(set, SOL_SOCKET, SO_LINGER, &linger, &size));
	CHECK(linger.l_onoff == 1 && linger.l_linger == 7, "SO_LINGER is %d %d", linger.l_onoff, linger.l_linger);
	size = sizeof(name);
	MUST(getsockopt(set, SOL_SOCKET, SO_BINDTODEVICE, name, &size));
	CHECK(strcmp(name, "lo") == 0, "it is bound to the device '%s'", name);
	CHECK(net_get(set, IPPROTO_TCP, TCP_NODELAY) == 1, "TCP_NODELAY");
	CHECK(net_get(set, IPPROTO_TCP, TCP_KEEPIDLE) == 77 && net_get(set, IPPROTO_TCP, TCP_KEEPINTVL) == 33 &&
		      net_get(set, IPPROTO_TCP, TCP_KEEPCNT) == 5,
	      "the times of SO_KEEPALIVE");
	CHECK(net_get(set, IPPROTO_IP, IP_TOS) == 16 && net_get(set, IPPROTO_IP, IP_TTL) == 42, "IP_TOS or IP_TTL");
	for (int i = 0; i < 3; i++) {
		CHECK(net_port(group[i]) == port && backlog_of(group[i]) == 10 + i, "the group at one port has fallen apart");
		CHECK(net_get(group[i], SOL_SOCKET, SO_REUSEPORT) == 1, "SO_REUSEPORT");
	}
	wl_ok();
}
