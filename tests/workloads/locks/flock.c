// flags: --file-locks
/* flock locks: exclusive, shared, and one that belongs to parent and child together. */
#include <sys/file.h>

#include "workload.h"

static bool can_lock(const char *name, int how)
{
	int fd = MUST(open(wl_path(name), O_RDWR | O_CLOEXEC));
	bool got = flock(fd, how | LOCK_NB) == 0;

	close(fd);
	return got;
}

int main(int argc, char **argv)
{
	int exclusive, shared, inherited;
	pid_t child;

	wl_init(argc, argv);
	exclusive = MUST(open(wl_path("exclusive"), O_RDWR | O_CREAT, 0600));
	shared = MUST(open(wl_path("shared"), O_RDONLY | O_CREAT, 0600));
	inherited = MUST(open(wl_path("inherited"), O_RDWR | O_CREAT, 0600));
	MUST(flock(exclusive, LOCK_EX));
	MUST(flock(shared, LOCK_SH));
	MUST(flock(inherited, LOCK_EX));
	child = wl_fork();
	if (child == 0) {
		MUST(close(exclusive));
		MUST(close(shared));
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("closed"), F_OK) == 0, "the parent does not close");
		CHECK(!can_lock("inherited", LOCK_SH), "the lock is gone though the child still has the open");
		/* Unlocking through any descriptor of the open unlocks it. */
		MUST(flock(inherited, LOCK_UN));
		CHECK(can_lock("inherited", LOCK_EX), "the lock stays after unlocking");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(flock(exclusive, LOCK_UN));
	CHECK(!can_lock("exclusive", LOCK_SH), "the exclusive lock is gone");
	CHECK(can_lock("shared", LOCK_SH) && !can_lock("shared", LOCK_EX), "the shared lock is gone, or has become exclusive");
	MUST(close(inherited));
	MUST(close(MUST(creat(wl_path("closed"), 0666))));
	wl_join(child);
	MUST(flock(exclusive, LOCK_UN));
	CHECK(can_lock("exclusive", LOCK_EX), "the lock stays after unlocking");
	wl_ok();
}
