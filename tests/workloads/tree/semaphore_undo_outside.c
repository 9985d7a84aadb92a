// refused: it is to give back semaphores of the set
// peer: no, what is refused is not asked of it
/* A process has taken a semaphore that others may use as well, to be given back when it ends. */
#include <sys/ipc.h>
#include <sys/sem.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct sembuf operation = { 0, -1, SEM_UNDO };
	int set, value;

	wl_init(argc, argv);
	set = MUST(semget(IPC_PRIVATE, 1, IPC_CREAT | 0600));
	MUST(semctl(set, 0, SETVAL, 3));
	MUST(semop(set, &operation, 1));
	wl_ready();
	if (wl_lose)
		MUST(semctl(set, 0, SETVAL, 3));
	value = semctl(set, 0, GETVAL);
	MUST(semctl(set, 0, IPC_RMID));
	CHECK(value == 2, "the semaphore is %d", value);
	wl_ok();
}
