// flags: --tcp-established
// refused: urgent data
// peer: no, what is refused is not asked of it
/* A byte of urgent data that the program has not read. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, ends[2];
	char got[8] = "";

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 1));
	net_pair(listener, AF_INET, ends);
	MUST(send(ends[0], "now", 3, MSG_OOB));
	WAIT_FOR(net_ready(ends[1]) & POLLPRI, "it does not arrive");

	wl_ready();
	if (wl_lose)
		MUST(recv(ends[1], got, 1, MSG_OOB));
	CHECK(recv(ends[1], got, 1, MSG_OOB) == 1 && got[0] == 'w', "nothing urgent: %s", strerror(errno));
	CHECK(recv(ends[1], got, sizeof(got), 0) == 2, "nothing before it");
	wl_ok();
}
