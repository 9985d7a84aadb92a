/* A dozen processes that share open files under the same numbers and others, and have some of their own: more than are looked
 * at one by one. */
#include "workload.h"
#include <poll.h>
#include <sys/eventfd.h>

#define CHILDREN 12
/* Beyond what a descriptor table has room for at first. */
#define HIGH 130

/* A child: has the shared file twice, opens it once more itself, and has an eventfd of its own. */
static void child(int number, int shared, int pipe_end)
{
	int twin = MUST(fcntl(shared, number % 2 ? F_DUPFD_CLOEXEC : F_DUPFD, HIGH + number));
	int own = MUST(open(wl_path("file"), O_RDONLY | (number % 3 ? 0 : O_CLOEXEC)));
	int event = MUST(eventfd(number + 1, EFD_NONBLOCK));
	uint64_t count;
	char byte;

	MUST(lseek(own, 100 + number, SEEK_SET));
	if (number == 5)
		MUST(close(shared));
	wl_child_ready();
	wl_wait();
	CHECK(fcntl(twin, F_GETFD) == (number % 2 ? FD_CLOEXEC : 0), "child %d: the twin's flags are %d", number, fcntl(twin, F_GETFD));
	CHECK(fcntl(own, F_GETFD) == (number % 3 ? 0 : FD_CLOEXEC), "child %d: its own file's flags are %d", number, fcntl(own, F_GETFD));
	CHECK(lseek(own, 0, SEEK_CUR) == 100 + number, "child %d: its own position is %ld", number, (long)lseek(own, 0, SEEK_CUR));
	CHECK(read(event, &count, sizeof(count)) == sizeof(count) && count == (uint64_t)number + 1, "child %d: its event counts %lu", number,
	      (unsigned long)count);
	CHECK((fcntl(shared, F_GETFD) < 0) == (number == 5), "child %d: the shared number is%s open", number, number == 5 ? "" : " not");
	/* Each in its turn moves what all share. */
	WAIT_FOR(lseek(twin, 0, SEEK_CUR) == number, "child %d does not see the position of the others, but %ld", number,
		 (long)lseek(twin, 0, SEEK_CUR));
	MUST(lseek(twin, number + 1, SEEK_SET));
	CHECK(read(pipe_end, &byte, 1) == 1, "child %d: nothing in the pipe that all share", number);
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t children[CHILDREN];
	int shared, ends[2];

	wl_init(argc, argv);
	shared = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0600));
	MUST(lseek(shared, 1000, SEEK_SET));
	MUST(pipe(ends));
	for (int i = 0; i < CHILDREN; i++) {
		children[i] = wl_fork();
		if (children[i] == 0)
			child(i, shared, ends[0]);
	}
	CHECK(write(ends[1], "one for each", CHILDREN) == CHILDREN, "write: %s", strerror(errno));

	wl_ready();
	if (wl_lose)
		MUST(dup2(MUST(open(wl_path("file"), O_RDWR)), shared));
	MUST(lseek(shared, 0, SEEK_SET));
	for (int i = 0; i < CHILDREN; i++)
		wl_join(children[i]);
	CHECK(lseek(shared, 0, SEEK_CUR) == CHILDREN, "the position is %ld in the end", (long)lseek(shared, 0, SEEK_CUR));
	CHECK(poll(&(struct pollfd){ .fd = ends[0], .events = POLLIN }, 1, 0) == 0, "something is left in the pipe");
	wl_ok();
}
