// refused: MPTCP
// peer: no, it cannot either
/* A socket of multipath TCP. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener;

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 262 /* IPPROTO_MPTCP */, 0);
	MUST(listen(listener, 3));

	wl_ready();
	if (wl_lose)
		MUST(shutdown(listener, SHUT_RDWR));
	net_serves(listener, AF_INET, "it");
	wl_ok();
}
