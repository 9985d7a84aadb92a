// peer: no, CRIU 4.2 dies of sockets on their way that carry some themselves
/* Descriptors on their way in messages that were not read: of every kind, in every type of socket, in sockets that are on
 * their way themselves, and in circles. */
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "unix.h"

static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };

static void reads(int fd, const char *text, const char *what)
{
	char got[64] = "";

	CHECK(read(fd, got, sizeof(got) - 1) == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s: '%s', should be '%s'", what,
	      got, text);
}

static int file_with(const char *name, const char *text)
{
	int fd = MUST(open(wl_path(name), O_RDWR | O_CREAT | O_APPEND, 0600));

	MUST(write(fd, text, strlen(text)));
	MUST(lseek(fd, 2, SEEK_SET));
	return fd;
}

int main(int argc, char **argv)
{
	int carrier[3][2], stream[2], files[16], shared, kept_pipe[2], inner[2], knot[2], circle[2][2], set, box, sender;
	int tcp, got, listener, client, left[2], far[2];
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 77 };
	char name[64], hall[64];
	uint64_t count = 5;

	wl_init(argc, argv);
	snprintf(name, sizeof(name), "@wl-%d-box", getpid());
	snprintf(hall, sizeof(hall), "@wl-%d-hall", getpid());
	shared = file_with("shared", "0123456789");
	MUST(pipe(kept_pipe));
	for (int i = 0; i < 3; i++) {
		int ends[2];

		unix_pair(types[i], carrier[i]);
		/* Of a pipe whose ends nobody has, with what was written; and things that more than one has. */
		MUST(pipe(ends));
		MUST(write(ends[1], "in the pipe", 11));
		files[0] = ends[0];
		files[1] = ends[1];
		files[2] = MUST(memfd_create("memory", 0));
		MUST(write(files[2], "memory", 6));
		MUST(lseek(files[2], 0, SEEK_SET));
		files[3] = file_with("deleted", "deleted file");
		MUST(unlink(wl_path("deleted")));
		files[4] = MUST(dup(shared));
		files[5] = MUST(eventfd(7, EFD_NONBLOCK));
		files[6] = MUST(dup(files[5]));
		unix_gives(carrier[i][0], "first", files, 7, false);
		unix_gives(carrier[i][0], "second", &shared, 1, true);
		MUST(send(carrier[i][0], "third", 5, 0));
	}

	/* Of a stream, bytes before and behind. */
	unix_pair(SOCK_STREAM, stream);
	unix_sends(stream[0], "abc");
	unix_gives(stream[0], "d", (int[]){ MUST(eventfd(1, 0)) }, 1, false);
	unix_gives(stream[0], "e", (int[]){ MUST(eventfd(2, 0)) }, 1, false);
	unix_sends(stream[0], "fgh");

	/* By name, from one that nobody has but a message. */
	box = unix_bound(SOCK_DGRAM, name);
	sender = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(unix_connect(sender, name));
	unix_gives(sender, "from itself", &sender, 1, false);

	/* A socket on its way, which has some that have some. */
	unix_pair(SOCK_STREAM, inner);
	unix_sends(inner[1], "from the inner one");
	unix_gives(inner[0], "inner", (int[]){ MUST(eventfd(3, 0)) }, 1, false);
	{
		int third[2];

		unix_pair(SOCK_SEQPACKET, third);
		unix_gives(third[0], "third", (int[]){ MUST(eventfd(4, 0)) }, 1, false);
		unix_gives(inner[0], "more", &third[1], 1, false);
		unix_gives(inner[0], "and its end", &third[0], 1, false);
	}
	unix_gives(carrier[0][1], "inner", &inner[1], 1, false);

	/* A socket in its own queue, and two in each other's. */
	unix_pair(SOCK_DGRAM, knot);
	unix_gives(knot[0], "knot", &knot[1], 1, true);
	for (int i = 0; i < 2; i++)
		unix_pair(SOCK_STREAM, circle[i]);
	unix_gives(circle[0][0], "circle", &circle[1][1], 1, true);
	unix_gives(circle[1][0], "circle", &circle[0][1], 1, true);
	close(circle[1][1]);

	/* Who watches, who listens, who has a far end that is gone. */
	set = MUST(epoll_create1(0));
	MUST(epoll_ctl(set, EPOLL_CTL_ADD, kept_pipe[0], &event));
	unix_gives(carrier[1][1], "set", &set, 1, false);
	listener = unix_bound(SOCK_STREAM, hall);
	MUST(listen(listener, 3));
	tcp = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(tcp, 3));
	files[0] = listener;
	files[1] = tcp;
	unix_gives(carrier[2][1], "listeners", files, 2, false);
	unix_pair(SOCK_STREAM, left);
	unix_pair(SOCK_DGRAM, far);
	unix_gives(far[1], "farewell", (int[]){ left[0] }, 1, false);
	unix_gives(left[1], "farewell", (int[]){ MUST(eventfd(6, 0)) }, 1, false);
	close(left[1]);
	close(far[1]);

	wl_ready();
	if (wl_lose)
		MUST(recv(carrier[1][1], files, 1, 0));
	for (int i = 0; i < 3; i++) {
		char what[32];

		snprintf(what, sizeof(what), "carrier %d", i);
		unix_takes(carrier[i][1], 32, "first", files, 7, what);
		reads(files[0], "in the pipe", what);
		MUST(write(files[1], "again", 5));
		reads(files[0], "again", what);
		reads(files[2], "memory", what);
		reads(files[3], "leted file", what);
		CHECK(MUST(fcntl(files[3], F_GETFL)) & O_APPEND, "%s: a file lost its flags", what);
		CHECK(lseek(files[4], 0, SEEK_CUR) == 2, "%s: a shared file is elsewhere", what);
		MUST(lseek(shared, 5, SEEK_SET));
		CHECK(lseek(files[4], 0, SEEK_CUR) == 5, "%s: a file is no more shared", what);
		MUST(lseek(shared, 2, SEEK_SET));
		MUST(write(files[5], &count, 8));
		MUST(read(files[6], &count, 8));
		CHECK(count == 12, "%s: an event counts %d", what, (int)count);
		count = 5;
		CHECK(read(files[6], &count, 8) == -1 && errno == EAGAIN, "%s: an event waits", what);
		for (int j = 0; j < 7; j++)
			close(files[j]);
		unix_takes(carrier[i][1], 32, "second", files, 1, what);
		MUST(lseek(shared, 7, SEEK_SET));
		CHECK(lseek(files[0], 0, SEEK_CUR) == 7, "%s: the second file is no more shared", what);
		MUST(lseek(shared, 2, SEEK_SET));
		unix_takes(carrier[i][1], 32, "third", files, 0, what);
		unix_is_empty(carrier[i][1], what);
	}

	unix_takes(stream[1], 3, "abc", files, 0, "a stream");
	unix_takes(stream[1], 32, "d", files, 1, "a stream");
	MUST(read(files[0], &count, 8));
	CHECK(count == 1, "the first event of a stream is another");
	unix_takes(stream[1], 32, "e", files, 1, "a stream");
	MUST(read(files[0], &count, 8));
	CHECK(count == 2, "the second event of a stream is another");
	unix_takes(stream[1], 32, "fgh", files, 0, "a stream");

	unix_takes(box, 32, "from itself", &got, 1, "a box");
	unix_peer_is(got, name, "one that has sent itself");
	unix_sends(got, "once more");
	unix_gets(box, "once more", "a box");

	unix_takes(carrier[0][0], 32, "inner", &got, 1, "the carrier of one that carries");
	unix_gets(inner[0], "from the inner one", "the end of one that is carried");
	unix_takes(got, 32, "inner", files, 1, "an inner one");
	MUST(read(files[0], &count, 8));
	CHECK(count == 3, "an inner event is another");
	unix_takes(got, 32, "more", files, 1, "an inner one");
	unix_takes(files[0], 32, "third", files + 1, 1, "an innermost one");
	MUST(read(files[1], &count, 8));
	CHECK(count == 4, "an innermost event is another");
	unix_takes(got, 32, "and its end", files + 1, 1, "an inner one");
	unix_sends(files[1], "to the innermost");
	unix_gets(files[0], "to the innermost", "an innermost one");

	unix_takes(knot[1], 32, "knot", &got, 1, "a knot");
	unix_sends(knot[0], "through the knot");
	unix_gets(got, "through the knot", "a knot");
	unix_takes(circle[0][1], 32, "circle", &got, 1, "a circle");
	unix_takes(got, 32, "circle", files, 1, "a circle");
	unix_sends(circle[0][0], "round");
	unix_gets(files[0], "round", "a circle");

	unix_takes(carrier[1][0], 32, "set", &set, 1, "a carrier");
	CHECK(epoll_wait(set, &event, 1, 0) == 0, "there are events");
	MUST(write(kept_pipe[1], "x", 1));
	CHECK(epoll_wait(set, &event, 1, 0) == 1 && event.data.u64 == 77, "there is no event");
	unix_takes(carrier[2][0], 32, "listeners", files, 2, "a carrier");
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(unix_connect(client, hall));
	MUST(accept(files[0], NULL, NULL));
	net_serves(files[1], AF_INET, "one of TCP");
	unix_takes(far[0], 32, "farewell", &got, 1, "one that is left");
	unix_takes(got, 32, "farewell", files, 1, "one that is left");
	MUST(read(files[0], &count, 8));
	CHECK(count == 6, "the last event is another");
	unix_ends(got, "one that is left");
	wl_ok();
}
