// flags: --file-locks
/* Open file description locks: they belong to an open, whoever holds it, and two opens of one process exclude each other. */
#include "workload.h"

static int lock(int fd, short kind, off_t start, off_t length)
{
	struct flock lock = { .l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length };

	return fcntl(fd, F_OFD_SETLK, &lock);
}

int main(int argc, char **argv)
{
	int first, second;
	pid_t child;

	wl_init(argc, argv);
	first = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0600));
	second = MUST(open(wl_path("file"), O_RDWR));
	MUST(lock(first, F_WRLCK, 0, 10));
	MUST(lock(second, F_RDLCK, 10, 10));
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(access(wl_path("closed"), F_OK) == 0, "the parent does not close");
		CHECK(lock(second, F_RDLCK, 0, 10) < 0 && errno == EAGAIN, "the first lock is gone though the child still has the open");
		MUST(lock(first, F_UNLCK, 0, 10));
		CHECK(lock(second, F_RDLCK, 0, 10) == 0, "the lock stays after unlocking");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(lock(second, F_UNLCK, 0, 0));
	CHECK(lock(second, F_RDLCK, 5, 1) < 0 && errno == EAGAIN, "the first lock is gone");
	CHECK(lock(first, F_RDLCK, 15, 1) == 0, "the second lock has become exclusive");
	MUST(lock(first, F_UNLCK, 15, 1));
	CHECK(lock(first, F_WRLCK, 15, 1) < 0 && errno == EAGAIN, "the second lock is gone");
	MUST(close(first));
	MUST(close(MUST(creat(wl_path("closed"), 0666))));
	wl_join(child);
	wl_ok();
}
