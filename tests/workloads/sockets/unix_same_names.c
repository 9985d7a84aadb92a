// peer: no, CRIU 4.2 loses the names of some
/* Sockets whose names are gone: several of one name, one after the other, in a directory that is gone as well; and one
 * whose place a file has taken that is no socket. */
#include <sys/stat.h>

#include "unix.h"

int main(int argc, char **argv)
{
	int boxes[3], writers[3], listeners[2], clients[2], served[2], replaced, relative;
	char *dir, *path, *hall, *taken, text[32];
	struct stat status;

	wl_init(argc, argv);
	MUST(chdir(wl_dir));
	dir = strdup(wl_path("dir"));
	path = strdup(wl_path("dir/box"));
	hall = strdup(wl_path("dir/hall"));
	taken = strdup(wl_path("taken"));
	MUST(mkdir(dir, 0700));
	for (int i = 0; i < 3; i++) {
		boxes[i] = unix_bound(SOCK_DGRAM, path);
		writers[i] = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
		MUST(unix_connect(writers[i], path));
		snprintf(text, sizeof(text), "for box %d", i);
		unix_sends(writers[i], text);
		MUST(unlink(path));
	}
	for (int i = 0; i < 2; i++) {
		listeners[i] = unix_bound(SOCK_STREAM, hall);
		MUST(listen(listeners[i], 2));
		clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(unix_connect(clients[i], hall));
		served[i] = MUST(accept(listeners[i], NULL, NULL));
		close(clients[i]);
		clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(unix_connect(clients[i], hall));
		MUST(unlink(hall));
	}
	relative = unix_bound(SOCK_DGRAM, "dir/relative");
	MUST(unlink("dir/relative"));
	MUST(rmdir(dir));
	replaced = unix_bound(SOCK_STREAM, taken);
	MUST(listen(replaced, 1));
	MUST(unlink(taken));
	MUST(mkdir(taken, 0700));

	wl_ready();
	if (wl_lose)
		MUST(recv(boxes[1], text, 1, 0));
	for (int i = 0; i < 3; i++) {
		char wanted[32], what[32];

		snprintf(what, sizeof(what), "box %d", i);
		snprintf(wanted, sizeof(wanted), "for box %d", i);
		unix_is_named(boxes[i], path, what);
		unix_gets(boxes[i], wanted, what);
		unix_sends(writers[i], "again");
		unix_gets(boxes[i], "again", what);
		unix_peer_is(writers[i], path, what);
	}
	for (int i = 0; i < 2; i++) {
		int late;

		unix_is_named(served[i], hall, "an accepted one");
		unix_ends(served[i], "an accepted one");
		late = MUST(accept(listeners[i], NULL, NULL));
		unix_is_named(late, hall, "one that waited");
		unix_sends(clients[i], "hello");
		unix_gets(late, "hello", "one that waited");
	}
	unix_is_named(relative, "dir/relative", "a relative one");
	unix_is_named(replaced, taken, "one that was replaced");
	CHECK(stat(taken, &status) == 0 && S_ISDIR(status.st_mode), "what has replaced it is gone");
	CHECK(stat(dir, &status) == -1 && errno == ENOENT, "the directory is there");
	wl_ok();
}
