// refused: Unix sockets cannot be carried yet
// peer: no, it carries them
/* A family of sockets that cannot be carried. */
#include "net.h"

int main(int argc, char **argv)
{
	int ends[2];
	char got[8] = "";

	wl_init(argc, argv);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	MUST(send(ends[0], "hello", 5, 0));

	wl_ready();
	if (wl_lose)
		MUST(recv(ends[1], got, 1, 0));
	CHECK(recv(ends[1], got, sizeof(got), 0) == 5, "'%s' arrives", got);
	wl_ok();
}
