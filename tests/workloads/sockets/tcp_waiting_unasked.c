// refused: waits to be accepted
// peer: no, what is refused is not asked of it
/* A connection that the server has not accepted yet, of which nobody has said what is to become of it. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, client, served;
	char got[8] = "";

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0, 0);
	MUST(listen(listener, 2));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_connect(client, AF_INET, net_port(listener));
	MUST(send(client, "early", 5, 0));

	wl_ready();
	if (wl_lose)
		close(MUST(accept(listener, NULL, NULL)));
	served = accept(listener, NULL, NULL);
	CHECK(served >= 0, "it does not wait any more");
	CHECK(recv(served, got, sizeof(got), 0) == 5 && strcmp(got, "early") == 0, "'%s' arrives", got);
	wl_ok();
}
