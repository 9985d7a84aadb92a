// refused: is outside of the tree: process
// peer: no, CRIU tells no process
/* Who waits to be accepted belongs to a process that is not part of the tree. */
#include "unix.h"

int main(int argc, char **argv)
{
	int listener, ready[2], served;
	char byte, name[64];

	wl_init(argc, argv);
	snprintf(name, sizeof(name), "@wl-%d-hall", getpid());
	listener = unix_bound(SOCK_STREAM, name);
	MUST(listen(listener, 1));
	MUST(pipe(ready));
	if (MUST(fork()) == 0) {
		/* Its child loses its parent, and with that its place in the tree. */
		if (MUST(fork()) == 0) {
			int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

			MUST(setsid());
			close(ready[0]);
			close(listener);
			MUST(unix_connect(client, name));
			MUST(write(ready[1], "x", 1));
			close(ready[1]);
			while (recv(client, &byte, 1, 0) == 1)
				send(client, &byte, 1, MSG_NOSIGNAL);
			_exit(0);
		}
		_exit(0);
	}
	MUST(wait(NULL));
	MUST(read(ready[0], &byte, 1));
	close(ready[0]);
	close(ready[1]);

	wl_ready();
	served = MUST(accept(listener, NULL, NULL));
	if (wl_lose)
		MUST(shutdown(served, SHUT_RDWR));
	MUST(send(served, "y", 1, MSG_NOSIGNAL));
	CHECK(recv(served, &byte, 1, 0) == 1 && byte == 'y', "no answer");
	wl_ok();
}
