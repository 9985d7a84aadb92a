// peer: no, CRIU 4.2 loses the error
/* Streams whose peer has closed them with something unread, an error that was not told yet (ECONNRESET); and options of
 * Unix sockets alone. */
#include "unix.h"

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#ifndef SO_INQ
#define SO_INQ 84
#endif

int main(int argc, char **argv)
{
	int ends[2][2], options[2], listener, client, served;
	char byte, *path;

	wl_init(argc, argv);
	path = strdup(wl_path("listener"));
	for (int i = 0; i < 2; i++) {
		unix_pair(SOCK_STREAM, ends[i]);
		unix_sends(ends[i][0], "never read");
		if (i)
			unix_sends(ends[i][1], "farewell");
		close(ends[i][1]);
	}
	listener = unix_bound(SOCK_STREAM, path);
	MUST(listen(listener, 1));
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(unix_connect(client, path));
	served = MUST(accept(listener, NULL, NULL));
	unix_sends(served, "never read");
	close(client);
	unix_pair(SOCK_STREAM, options);
	/* Kernels before 6.5, 6.16 and 6.17 lack them. */
	setsockopt(options[0], SOL_SOCKET, SO_PASSPIDFD, &(int){ 1 }, sizeof(int));
	setsockopt(options[0], SOL_SOCKET, SO_PASSRIGHTS, &(int){ 0 }, sizeof(int));
	setsockopt(options[0], SOL_SOCKET, SO_INQ, &(int){ 1 }, sizeof(int));

	wl_ready();
	if (wl_lose)
		net_get(ends[0][0], SOL_SOCKET, SO_ERROR);
	CHECK(net_ready(ends[0][0]) & POLLERR, "there is no error");
	CHECK(recv(ends[0][0], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "another error: %s", strerror(errno));
	unix_ends(ends[0][0], "one that was reset");
	unix_gets(ends[1][0], "farewell", "one that was reset with a farewell");
	CHECK(net_get(ends[1][0], SOL_SOCKET, SO_ERROR) == ECONNRESET, "the second has no error");
	unix_ends(ends[1][0], "the second");
	unix_is_named(served, path, "an accepted one");
	CHECK(recv(served, &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET, "another error: %s", strerror(errno));
	wl_ok();
}
