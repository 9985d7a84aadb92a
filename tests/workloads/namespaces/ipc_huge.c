// peer: no, CRIU does not find memory that ends within a page, and loses its creator
/*
 * An ipc namespace of its own with memory of huge pages: a segment that is mapped, and one that nobody has mapped, made by
 * a user who was allowed to.
 */
#include <linux/capability.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "../memory/huge_pages.h"

#define SIZE (HUGE + 5000)

static uint8_t *attach(int id)
{
	uint8_t *at = shmat(id, NULL, 0);

	CHECK(at != (void *)-1, "shmat: %s", strerror(errno));
	return at;
}

/* Another effective user, with all that this process may do. */
static void become(uid_t uid)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[2];

	MUST(seteuid(uid));
	MUST(syscall(SYS_capget, &header, sets));
	sets[0].effective = sets[0].permitted;
	sets[1].effective = sets[1].permitted;
	MUST(syscall(SYS_capset, &header, sets));
}

int main(int argc, char **argv)
{
	uint8_t *mapped, *loose;
	struct shmid_ds status;
	int mapped_id, loose_id;

	wl_init(argc, argv);
	provide_pages();
	MUST(unshare(CLONE_NEWIPC));
	mapped_id = MUST(shmget(0x45, SIZE, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0640));
	become(65534);
	loose_id = MUST(shmget(0x46, HUGE, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0600));
	become(0);
	mapped = attach(mapped_id);
	wl_fill(mapped, SIZE, 1);
	loose = attach(loose_id);
	wl_fill(loose, HUGE, 2);
	MUST(shmdt(loose));

	wl_ready();
	if (wl_lose)
		mapped[SIZE - 1]++;
	CHECK(shmget(0x45, 0, 0) == mapped_id && shmget(0x46, 0, 0) == loose_id, "the segments are others");
	CHECK(wl_differs(mapped, SIZE, 1) < 0, "byte %zd of the mapped one is another", wl_differs(mapped, SIZE, 1));
	MUST(shmctl(loose_id, IPC_STAT, &status));
	CHECK(status.shm_perm.cuid == 65534, "it was made by user %d", status.shm_perm.cuid);
	loose = attach(loose_id);
	CHECK(wl_differs(loose, HUGE, 2) < 0, "byte %zd of the other is another", wl_differs(loose, HUGE, 2));
	wl_ok();
}
