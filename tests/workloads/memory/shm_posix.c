// differs: descriptor fdinfo.flags, O_NOFOLLOW of a deleted file has done its work
/* POSIX shared memory: a named segment and an unlinked one, between two processes. */
#include "workload.h"

#define SIZE (6 * 4096)

int main(int argc, char **argv)
{
	char named[64], unlinked[64];
	uint8_t *first, *second;
	int fd, kept;
	pid_t child;

	wl_init(argc, argv);
	snprintf(named, sizeof(named), "/cryonaut-named-%d", getpid());
	snprintf(unlinked, sizeof(unlinked), "/cryonaut-unlinked-%d", getpid());
	fd = MUST(shm_open(named, O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(fd, SIZE));
	first = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	MUST(close(fd));
	kept = MUST(shm_open(unlinked, O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(kept, SIZE));
	second = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, kept, 0));
	MUST(shm_unlink(unlinked));
	wl_fill(first, SIZE, 1);
	wl_fill(second, SIZE, 2);
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(*(volatile uint8_t *)first == 'p' && *(volatile uint8_t *)second == 'q', "the child sees other segments");
		first[1] = second[1] = 'c';
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		memset(second + 4096, 0, 10);
	CHECK(wl_differs(first, SIZE, 1) < 0, "the named segment differs");
	CHECK(wl_differs(second, SIZE, 2) < 0, "the unlinked segment differs");
	first[0] = 'p';
	second[0] = 'q';
	wl_join(child);
	CHECK(first[1] == 'c' && second[1] == 'c', "the parent sees other segments than the child");
	CHECK(pread(kept, second + 100, 1, 1) == 1 && second[100] == 'c', "the descriptor is of another segment");
	MUST(shm_unlink(named));
	wl_ok();
}
