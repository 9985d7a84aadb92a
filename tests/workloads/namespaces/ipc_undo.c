// peer: no, CRIU 4.2 loses what is to be given back
/* Semaphores that processes have taken with SEM_UNDO: they are given back when the processes end, and not before. */
#include <pthread.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/sem.h>

#include "workload.h"

static int set;

static void operate(unsigned short number, short change, short flags)
{
	struct sembuf operation = { number, change, flags | IPC_NOWAIT };

	MUST(semop(set, &operation, 1));
}

static void *in_thread(void *none)
{
	operate(0, -1, SEM_UNDO);
	return none;
}

static void check(unsigned short a, unsigned short b, unsigned short c, const char *when)
{
	unsigned short now[3];

	MUST(semctl(set, 0, GETALL, now));
	CHECK(now[0] == a && now[1] == b && now[2] == c, "%s: %d %d %d", when, now[0], now[1], now[2]);
}

int main(int argc, char **argv)
{
	unsigned short values[3] = { 10, 0, 32767 };
	pthread_t thread;
	int go[2];
	pid_t child;
	char byte;

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	MUST(pipe2(go, O_CLOEXEC));
	set = MUST(semget(IPC_PRIVATE, 3, IPC_CREAT | 0600));
	MUST(semctl(set, 0, SETALL, values));
	child = wl_fork();
	if (child == 0) {
		operate(0, -3, SEM_UNDO);
		/* To be taken from it, and to be given to what is full. */
		operate(1, 5, SEM_UNDO);
		operate(2, -4, SEM_UNDO);
		operate(2, 4, 0);
		wl_child_ready();
		MUST(read(go[0], &byte, 1));
		pthread_create(&thread, NULL, in_thread, NULL);
		pthread_join(thread, NULL);
		check(6, 5, 32767, "while the child is there");
		operate(2, -10, 0);
		_exit(0);
	}
	wl_ready();
	check(7, 5, 32767, "before the child goes on");
	if (wl_lose)
		MUST(semctl(set, 0, SETALL, ((unsigned short[3]){ 7, 5, 32767 })));
	MUST(write(go[1], "x", 1));
	wl_join(child);
	check(10, 0, 32761, "after the child's end");
	wl_ok();
}
