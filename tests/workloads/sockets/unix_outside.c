// refused: is outside of the tree: process
// peer: no, CRIU tells no process
/* A socket whose peer belongs to a process that is not part of the tree. */
#include "unix.h"

int main(int argc, char **argv)
{
	int ends[2], ready[2];
	char byte;

	wl_init(argc, argv);
	unix_pair(SOCK_STREAM, ends);
	MUST(pipe(ready));
	if (MUST(fork()) == 0) {
		/* Its child loses its parent, and with that its place in the tree. */
		if (MUST(fork()) == 0) {
			MUST(setsid());
			close(ends[0]);
			close(ready[0]);
			MUST(write(ready[1], "x", 1));
			close(ready[1]);
			while (recv(ends[1], &byte, 1, 0) == 1)
				send(ends[1], &byte, 1, MSG_NOSIGNAL);
			_exit(0);
		}
		_exit(0);
	}
	MUST(wait(NULL));
	MUST(read(ready[0], &byte, 1));
	close(ready[0]);
	close(ready[1]);
	close(ends[1]);

	wl_ready();
	if (wl_lose)
		MUST(shutdown(ends[0], SHUT_RDWR));
	MUST(send(ends[0], "y", 1, MSG_NOSIGNAL));
	CHECK(recv(ends[0], &byte, 1, 0) == 1 && byte == 'y', "no answer");
	wl_ok();
}
