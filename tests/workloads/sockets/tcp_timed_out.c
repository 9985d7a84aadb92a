// flags: --tcp-established
// refused: Connection timed out
// peer: no, what is refused is not asked of it
/* An attempt to connect for which the time is over, which the program has not been told. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, filler, client;

	wl_init(argc, argv);
	listener = net_full(AF_INET, &filler);
	client = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	net_set(client, IPPROTO_TCP, TCP_USER_TIMEOUT, 1);
	net_begin(client, AF_INET, net_port(listener));
	WAIT_FOR(net_ready(client) & POLLERR, "it does not end");

	wl_ready();
	if (wl_lose)
		MUST(net_get(client, SOL_SOCKET, SO_ERROR));
	CHECK(net_get(client, SOL_SOCKET, SO_ERROR) == ETIMEDOUT, "the error is another");
	wl_ok();
}
