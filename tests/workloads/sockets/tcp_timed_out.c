// flags: --tcp-established
// refused: Connection timed out
// peer: no, what is refused is not asked of it
/* An attempt to connect for which the time is over, which the program has not been told. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, filler, client;
	struct sockaddr_storage address;

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 0));
	address = net_loopback(AF_INET, net_port(listener));
	filler = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(filler, (struct sockaddr *)&address, net_size(AF_INET)));
	client = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	net_set(client, IPPROTO_TCP, TCP_USER_TIMEOUT, 1);
	CHECK(connect(client, (struct sockaddr *)&address, net_size(AF_INET)) < 0 && errno == EINPROGRESS, "connect: %s",
	      strerror(errno));
	WAIT_FOR(net_ready(client) & POLLERR, "it does not end");

	wl_ready();
	if (wl_lose)
		MUST(net_get(client, SOL_SOCKET, SO_ERROR));
	CHECK(net_get(client, SOL_SOCKET, SO_ERROR) == ETIMEDOUT, "the error is another");
	wl_ok();
}
