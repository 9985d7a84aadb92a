// peer: no, CRIU wants an ipc namespace
/* System V shared memory of huge pages: a segment that stays, mapped twice, and one that was removed and is mapped only. */
#include <sys/ipc.h>
#include <sys/shm.h>

#include "huge_pages.h"

/* All of the last page can be written to. */
#define SIZE (HUGE + 5000)
#define USABLE (2 * HUGE)

static uint8_t *attach(int id)
{
	uint8_t *at = shmat(id, NULL, 0);

	CHECK(at != (void *)-1, "shmat: %s", strerror(errno));
	return at;
}

int main(int argc, char **argv)
{
	uint8_t *kept, *again, *removed;
	struct shmid_ds status;
	int kept_id, removed_id, gone;

	wl_init(argc, argv);
	provide_pages();
	kept_id = MUST(shmget(0x44000000 | getpid(), SIZE, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0640));
	removed_id = MUST(shmget(IPC_PRIVATE, HUGE, IPC_CREAT | SHM_HUGETLB | 0600));
	kept = attach(kept_id);
	again = attach(kept_id);
	removed = attach(removed_id);
	MUST(shmctl(removed_id, IPC_RMID, NULL));
	wl_fill(kept, USABLE, 1);
	wl_fill(removed + 4096, 4096, 2);

	wl_ready();
	if (wl_lose)
		kept[USABLE - 1]++;
	gone = shmctl(kept_id, IPC_STAT, &status);
	shmctl(kept_id, IPC_RMID, NULL);
	CHECK(gone == 0 && status.shm_segsz == SIZE && status.shm_nattch == 2, "the segment is another");
	CHECK(status.shm_perm.__key == (key_t)(0x44000000 | getpid()), "another key: %#x", status.shm_perm.__key);
	MUST(shmctl(removed_id, IPC_STAT, &status));
	CHECK(status.shm_perm.mode & SHM_DEST, "the removed one is not removed");
	CHECK(wl_differs(kept, USABLE, 1) < 0, "byte %zd of the segment is another", wl_differs(kept, USABLE, 1));
	CHECK(wl_differs(removed + 4096, 4096, 2) < 0, "the removed segment holds something else");
	kept[HUGE + 9] = 99;
	CHECK(again[HUGE + 9] == 99, "two mappings of one segment differ");
	wl_ok();
}
