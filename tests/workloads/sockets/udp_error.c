// peer: no, CRIU 4.2 takes the error away
/* Sockets of UDP that have been told that nobody is there, and whose program has not. */
#include "net.h"

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int sockets[2], port;

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		int nobody = net_bound(families[i], SOCK_DGRAM, 0, 0);

		sockets[i] = net_bound(families[i], SOCK_DGRAM, 0, 0);
		port = net_port(nobody);
		net_connect(sockets[i], families[i], port);
		close(nobody);
		MUST(send(sockets[i], "?", 1, 0));
		WAIT_FOR(net_ready(sockets[i]) & POLLERR, "no error");
	}

	wl_ready();
	if (wl_lose)
		MUST(net_get(sockets[1], SOL_SOCKET, SO_ERROR));
	for (int i = 0; i < 2; i++) {
		CHECK(net_get(sockets[i], SOL_SOCKET, SO_ERROR) == ECONNREFUSED, "%d: the error is gone", i);
		CHECK(!(net_ready(sockets[i]) & POLLERR), "%d: the error stays", i);
	}
	wl_ok();
}
