// peer: no, CRIU 4.2 refuses unread data of connections that wait, and changes who has connected first
/* Connections through names that wait to be accepted: with requests that were sent, also long ones and
 * with descriptors, shut down, closed, from a child. */
#include "unix.h"

static void asks(int fd, const char *name, const char *text)
{
	MUST(unix_connect(fd, name));
	if (text[0])
		unix_sends(fd, text);
}

int main(int argc, char **argv)
{
	int listener, packets, hidden, gone, clients[6], served, ends[2], given[2], kept[2];
	char *path, *gone_path, hall[64], large[120000], got[120000];
	struct stat status;
	pid_t child;

	wl_init(argc, argv);
	MUST(chdir(wl_dir));
	path = strdup(wl_path("listener"));
	gone_path = strdup(wl_path("gone"));
	snprintf(hall, sizeof(hall), "@wl-%d-hall", getpid());
	listener = unix_bound(SOCK_STREAM, path);
	MUST(listen(listener, 4));
	packets = unix_bound(SOCK_SEQPACKET, "./packets");
	MUST(listen(packets, 2));
	hidden = unix_bound(SOCK_STREAM, hall);
	MUST(listen(hidden, 1));
	gone = unix_bound(SOCK_STREAM, gone_path);
	MUST(listen(gone, 1));
	for (int i = 0; i < 6; i++)
		clients[i] = MUST(socket(AF_UNIX, i == 3 ? SOCK_SEQPACKET : SOCK_STREAM, 0));
	wl_fill(large, sizeof(large), 5);

	asks(clients[0], path, "first ");
	MUST(send(clients[0], large, sizeof(large), 0));
	MUST(pipe(given));
	kept[0] = given[1];
	kept[1] = clients[0];
	unix_gives(clients[0], "with descriptors", kept, 2, true);
	unix_bind(clients[1], "client");
	asks(clients[1], path, "");
	asks(clients[2], path, "third");
	close(clients[2]);
	MUST(pipe(ends));
	child = MUST(fork());
	if (child == 0) {
		int own = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

		asks(own, path, "from the child");
		MUST(shutdown(own, SHUT_WR));
		MUST(write(ends[1], "x", 1));
		wl_wait();
		CHECK(recv(own, got, sizeof(got), 0) == 12 && memcmp(got, "to the child", 12) == 0, "the child gets no answer");
		_exit(0);
	}
	MUST(read(ends[0], got, 1));
	asks(clients[3], "./packets", "one");
	unix_sends(clients[3], "two");
	MUST(send(clients[3], "", 0, 0));
	asks(clients[4], hall, "hidden");
	asks(clients[5], gone_path, "gone");
	MUST(unlink(gone_path));

	wl_ready();
	if (wl_lose)
		close(MUST(accept(listener, NULL, NULL)));
	CHECK(stat(path, &status) == 0, "its file is missing");
	served = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK));
	unix_is_named(served, path, "the first");
	CHECK(recv(served, got, 6, 0) == 6 && memcmp(got, "first ", 6) == 0, "the first has another request");
	for (size_t at = 0; at < sizeof(got);) {
		ssize_t came = recv(served, got + at, sizeof(got) - at, 0);

		CHECK(came > 0, "the first has another long request: %s", strerror(errno));
		at += came;
	}
	CHECK(wl_differs(got, sizeof(got), 5) == -1, "the long request has another byte %zd", wl_differs(got, sizeof(got), 5));
	unix_takes(served, 16, "with descriptors", kept, 2, "the first");
	MUST(write(kept[0], "through", 7));
	CHECK(read(given[0], got, 8) == 7 && memcmp(got, "through", 7) == 0, "another pipe is brought");
	CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, kept[1], clients[0]) == 0, "another socket is brought");
	close(kept[0]);
	close(kept[1]);
	unix_sends(served, "answer");
	unix_gets(clients[0], "answer", "the first client");
	unix_peer_is(clients[0], path, "the first client");
	served = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK));
	unix_peer_is(served, "client", "the second");
	unix_is_empty(served, "the second");
	unix_sends(clients[1], "late");
	unix_gets(served, "late", "the second");
	served = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK));
	unix_gets(served, "third", "the third");
	unix_ends(served, "the third");
	served = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK));
	unix_gets(served, "from the child", "the fourth");
	unix_ends(served, "the fourth");
	unix_sends(served, "to the child");
	MUST(fcntl(listener, F_SETFL, O_NONBLOCK));
	CHECK(accept(listener, NULL, NULL) == -1, "there are more");
	served = MUST(accept4(packets, NULL, NULL, SOCK_NONBLOCK));
	unix_gets(served, "one", "packets");
	unix_gets(served, "two", "packets");
	unix_gets(served, "", "packets");
	unix_is_empty(served, "packets");
	served = MUST(accept4(hidden, NULL, NULL, SOCK_NONBLOCK));
	unix_is_named(served, hall, "an abstract one");
	unix_gets(served, "hidden", "an abstract one");
	served = MUST(accept4(gone, NULL, NULL, SOCK_NONBLOCK));
	unix_gets(served, "gone", "one whose name is gone");
	wl_join(child);
	wl_ok();
}
