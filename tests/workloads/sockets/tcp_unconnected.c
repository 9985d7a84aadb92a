/* TCP sockets that never were connected: without an address, with one, and one shared with a child. */
#include "net.h"

int main(int argc, char **argv)
{
	struct timeval limit = { 3, 500000 }, is;
	socklen_t size = sizeof(is);
	int plain, v6, bound, listener, ports[2];
	pid_t child;

	wl_init(argc, argv);
	plain = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(setsockopt(plain, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	net_set(plain, SOL_SOCKET, SO_RCVLOWAT, 9);
	v6 = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	bound = net_bound(AF_INET6, SOCK_STREAM, 0, 0);
	ports[0] = net_port(bound);
	/* Shared with a child, whose own it is there. */
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	ports[1] = net_port(listener);
	child = wl_fork();
	if (child == 0) {
		wl_child_ready();
		wl_wait();
		/* The parent makes it listen. */
		WAIT_FOR(net_get(listener, SOL_SOCKET, SO_ACCEPTCONN) == 1, "the child has another socket");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		net_set(plain, SOL_SOCKET, SO_RCVLOWAT, 8);
	MUST(getsockopt(plain, SOL_SOCKET, SO_RCVTIMEO, &is, &size));
	CHECK(is.tv_sec == 3 && is.tv_usec == 500000, "SO_RCVTIMEO is %ld.%06ld", is.tv_sec, is.tv_usec);
	CHECK(net_get(plain, SOL_SOCKET, SO_RCVLOWAT) == 9, "SO_RCVLOWAT is %d", net_get(plain, SOL_SOCKET, SO_RCVLOWAT));
	CHECK(net_port(plain) == 0 && net_port(v6) == 0, "it has an address now");
	CHECK(net_port(bound) == ports[0], "the port is %d, was %d", net_port(bound), ports[0]);
	CHECK(!(net_ready(plain) & POLLRDHUP), "it is shut down");
	CHECK(net_port(listener) == ports[1], "the shared one has another port");
	MUST(listen(listener, 1));
	net_serves(listener, AF_INET, "the shared one");
	wl_join(child);
	wl_ok();
}
