// flags: --file-locks
// peer: no, CRIU 4.2 loses the locks of a child on a descriptor that it shares with its parent
/* Ten processes with a file that they share, of which each has locked a byte (POSIX), and the one file all together (flock). */
#include "workload.h"
#include <sys/file.h>

#define CHILDREN 10

static struct flock byte_of(int number, short type)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = number, .l_len = 1 };
}

/* Who has locked a byte; 0 if nobody else has. */
static pid_t holder(int fd, int number)
{
	struct flock lock = byte_of(number, F_WRLCK);

	MUST(fcntl(fd, F_GETLK, &lock));
	return lock.l_type == F_UNLCK ? 0 : lock.l_pid;
}

int main(int argc, char **argv)
{
	pid_t children[CHILDREN];
	int shared, again;

	wl_init(argc, argv);
	shared = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0600));
	MUST(flock(shared, LOCK_EX));
	for (int i = 0; i < CHILDREN; i++) {
		children[i] = wl_fork();
		if (children[i] == 0) {
			struct flock lock = byte_of(i, F_WRLCK);

			MUST(fcntl(shared, F_SETLK, &lock));
			wl_child_ready();
			wl_wait();
			CHECK(i == 0 || holder(shared, i - 1) != getpid(), "the byte of %d is of %d", i - 1, i);
			WAIT_FOR(access(wl_path("seen"), F_OK) == 0, "the parent is not done");
			_exit(0);
		}
	}

	wl_ready();
	if (wl_lose)
		MUST(flock(shared, LOCK_UN));
	for (int i = 0; i < CHILDREN; i++)
		CHECK(holder(shared, i) == children[i], "byte %d is locked by %d, should be by %d", i, holder(shared, i), children[i]);
	again = MUST(open(wl_path("file"), O_RDWR));
	CHECK(flock(again, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the file is not locked any more");
	MUST(close(MUST(open(wl_path("seen"), O_CREAT | O_WRONLY, 0600))));
	for (int i = 0; i < CHILDREN; i++)
		wl_join(children[i]);
	wl_ok();
}
