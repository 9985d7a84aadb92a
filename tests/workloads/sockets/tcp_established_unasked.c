// refused: --tcp-established carries them
// peer: no, it is asked for what it refuses
/* A TCP connection, without a word that it may be carried. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, client, served;
	char got[8] = "";

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 1));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_connect(client, AF_INET, net_port(listener));
	served = MUST(accept(listener, NULL, NULL));
	MUST(send(client, "hello", 5, 0));

	wl_ready();
	if (wl_lose)
		close(client);
	CHECK(wl_lose || send(client, "!", 2, 0) == 2, "it cannot send");
	CHECK(recv(served, got, 7, MSG_WAITALL) == 7 && strcmp(got, "hello!") == 0, "'%s' arrives", got);
	wl_ok();
}
