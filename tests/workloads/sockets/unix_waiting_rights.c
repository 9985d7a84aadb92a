// refused: a descriptor (SCM_RIGHTS) that no process of the tree has any more
// peer: no, what is refused is not asked of it
/* A connection that waits to be accepted has sent the only descriptor of a pipe. */
#include "unix.h"

int main(int argc, char **argv)
{
	int listener, client, served, ends[2];
	char *path, got[8];

	wl_init(argc, argv);
	path = strdup(wl_path("listener"));
	listener = unix_bound(SOCK_STREAM, path);
	MUST(listen(listener, 1));
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(unix_connect(client, path));
	MUST(pipe(ends));
	unix_gives(client, "take it", ends + 1, 1, false);

	wl_ready();
	if (wl_lose)
		close(ends[0]);
	served = MUST(accept(listener, NULL, NULL));
	unix_takes(served, 8, "take it", ends + 1, 1, "who accepts");
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(ends[1], "through", 7) == 7, "write: %s", strerror(errno));
	CHECK(read(ends[0], got, sizeof(got)) == 7, "another pipe");
	wl_ok();
}
