// peer: no, CRIU wants an ipc namespace
/* System V shared memory: segments that stay, one that was removed and is mapped only, one that is read only. */
#include <sys/ipc.h>
#include <sys/shm.h>

#include "workload.h"

#define SIZE (5 * 4096 + 100)

static struct shmid_ds status_of(int id)
{
	struct shmid_ds status;

	memset(&status, 0, sizeof(status));
	if (shmctl(id, IPC_STAT, &status) < 0)
		status.shm_segsz = 0;
	return status;
}

/* A segment with a pattern, mapped. */
static uint8_t *segment(int *id, key_t key, unsigned seed)
{
	uint8_t *at;

	*id = MUST(shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640));
	at = shmat(*id, NULL, 0);
	CHECK(at != (void *)-1, "shmat: %s", strerror(errno));
	wl_fill(at, SIZE, seed);
	return at;
}

int main(int argc, char **argv)
{
	uint8_t *kept, *removed, *view;
	int kept_id, removed_id;
	struct shmid_ds status;
	char wrong[200] = "";
	pid_t child;

	wl_init(argc, argv);
	kept = segment(&kept_id, 0x43000000 | getpid(), 1);
	removed = segment(&removed_id, IPC_PRIVATE, 2);
	MUST(shmctl(removed_id, IPC_RMID, NULL));
	view = shmat(kept_id, NULL, SHM_RDONLY);
	CHECK(view != (void *)-1, "shmat: %s", strerror(errno));
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(removed[0] == 77, "the other does not write what is seen here");
		removed[1] = 78;
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		memset(kept, 0, 10);
	/* First what is to be looked at, then the segment goes, whatever was seen. */
	status = status_of(kept_id);
	if (status.shm_segsz != SIZE || status.shm_nattch != 4 || (status.shm_perm.mode & 0777) != 0640)
		snprintf(wrong, sizeof(wrong), "it has %zu bytes, %lu mappings, mode %o", status.shm_segsz, status.shm_nattch,
			 status.shm_perm.mode);
	else if (status.shm_perm.__key != (key_t)(0x43000000 | getpid()))
		snprintf(wrong, sizeof(wrong), "another key: %#x", status.shm_perm.__key);
	status = status_of(removed_id);
	if (status.shm_segsz != SIZE || !(status.shm_perm.mode & SHM_DEST) || status.shm_nattch != 2)
		snprintf(wrong, sizeof(wrong), "the removed one is not as it was");
	shmctl(kept_id, IPC_RMID, NULL);
	CHECK(!wrong[0], "%s", wrong);
	CHECK(wl_differs(kept, SIZE, 1) < 0, "byte %zd of the segment is another", wl_differs(kept, SIZE, 1));
	CHECK(wl_differs(removed, SIZE, 2) < 0, "byte %zd of the removed segment is another", wl_differs(removed, SIZE, 2));
	kept[4096] = 99;
	CHECK(view[4096] == 99, "two mappings of one segment differ");
	CHECK(mprotect(view, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES, "one for reading can be written");
	removed[0] = 77;
	wl_join(child);
	CHECK(removed[1] == 78, "the child has another segment");
	wl_ok();
}
