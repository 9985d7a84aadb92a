// peer: no, CRIU 4.2 refuses processes that share their memory
/* Two processes in the same memory, each with threads of its own: all see what any of them writes. */
#include <pthread.h>
#include <sched.h>

#include "workload.h"

#define EACH 3

static char stacks[1 + EACH][65536] __attribute__((aligned(16)));
static volatile int ready, turn;
static volatile pid_t groups[2 * EACH + 2];
static volatile pid_t child_pid;

/* The C library's own call would note in the thread pointer's area, which some have in common, that it may be cancelled. */
static void nap(void)
{
	static const struct timespec pause = { .tv_nsec = 2000000 };

	syscall(SYS_nanosleep, &pause, NULL);
}

/* Everybody waits for its turn, and passes it on. */
static void take_turn(int which)
{
	__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	while (turn != which)
		nap();
	groups[which] = getpid();
	turn = which + 1;
}

static void *thread(void *which)
{
	take_turn((int)(long)which);
	return NULL;
}

/* No thread of the C library's: it runs with the thread pointer of who has made it. */
static int bare_thread(void *which)
{
	take_turn((int)(long)which);
	syscall(SYS_exit, 0);
	return 0;
}

static int child(void *unused)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;

	(void)unused;
	for (long i = 0; i < EACH; i++)
		if (clone(bare_thread, stacks[1 + i] + sizeof(stacks[0]), flags, (void *)(EACH + 1 + i)) < 0)
			syscall(SYS_exit_group, 2);
	take_turn(2 * EACH + 1);
	syscall(SYS_exit_group, 0);
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t threads[EACH];

	wl_init(argc, argv);
	for (long i = 0; i < EACH; i++)
		MUST0(pthread_create(&threads[i], NULL, thread, (void *)(i + 1)));
	child_pid = MUST(clone(child, stacks[0] + sizeof(stacks[0]), CLONE_VM | SIGCHLD, NULL));
	WAIT_FOR(ready == 2 * EACH + 1, "not everybody is there");

	wl_ready();
	turn = wl_lose ? EACH + 1 : 1;
	WAIT_FOR(turn == 2 * EACH + 2, "somebody has not got the turn: %d", turn);
	for (int i = 1; i <= 2 * EACH + 1; i++)
		CHECK(groups[i] == (i <= EACH ? getpid() : child_pid), "thread %d is of process %d", i, groups[i]);
	for (int i = 0; i < EACH; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_join(child_pid);
	wl_ok();
}
