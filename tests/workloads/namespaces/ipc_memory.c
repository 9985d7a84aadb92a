/* An ipc namespace of its own with shared memory that CRIU carries as well: of usual and of huge pages, mapped and not. */
#include <sched.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "../memory/huge_pages.h"

/* CRIU does not find the memory of one that ends within a page. */
#define SMALL (5 * 4096)

static uint8_t *attach(int id)
{
	uint8_t *at = shmat(id, NULL, 0);

	CHECK(at != (void *)-1, "shmat: %s", strerror(errno));
	return at;
}

static int segment(key_t key, size_t size, int flags)
{
	int id = MUST(shmget(key, size, IPC_CREAT | IPC_EXCL | 0640 | flags));
	uint8_t *at = attach(id);

	wl_fill(at, size, key);
	MUST(shmdt(at));
	return id;
}

static void check(const uint8_t *at, size_t size, key_t key)
{
	CHECK(wl_differs(at, size, key) < 0, "byte %zd of segment %d is another", wl_differs(at, size, key), key);
}

int main(int argc, char **argv)
{
	int small, huge, loose, loose_huge;
	uint8_t *small_at, *huge_at;

	wl_init(argc, argv);
	provide_pages();
	MUST(unshare(CLONE_NEWIPC));
	small = segment(1, SMALL, 0);
	huge = segment(2, 2 * HUGE, SHM_HUGETLB);
	loose = segment(3, SMALL, 0);
	loose_huge = segment(4, HUGE, SHM_HUGETLB);
	small_at = attach(small);
	huge_at = attach(huge);

	wl_ready();
	if (wl_lose)
		huge_at[2 * HUGE - 1]++;
	CHECK(shmget(1, 0, 0) == small && shmget(2, 0, 0) == huge && shmget(3, 0, 0) == loose && shmget(4, 0, 0) == loose_huge,
	      "the segments are others");
	check(small_at, SMALL, 1);
	check(huge_at, 2 * HUGE, 2);
	check(attach(loose), SMALL, 3);
	check(attach(loose_huge), HUGE, 4);
	wl_ok();
}
