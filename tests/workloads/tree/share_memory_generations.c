// peer: no, CRIU 4.2 refuses processes that share their memory
/* Child and grandchild share the memory; the child also has a forked one, with a copy, and that shares its copy again. */
#include <sched.h>

#include "workload.h"

static char stacks[4][65536] __attribute__((aligned(16)));
static volatile int turn, copies_turn;
/* In memory that all have from the first process. */
static uint8_t *shared;
static volatile int kin;
/* The first process's child, the same as it sees itself, the grandchild and the copy. */
static volatile pid_t pids[4];

#define SIZE 200000

static void await(volatile int *what, int value)
{
	while (*what < value)
		wl_nap();
}

static void leave(int status)
{
	syscall(SYS_exit_group, status);
}

static int of_the_copy(void *unused)
{
	(void)unused;
	kin++;
	while (!wl_told_to_go())
		wl_nap();
	await(&copies_turn, 1);
	if (wl_differs(shared, SIZE, 2) >= 0)
		leave(5);
	copies_turn = 2;
	leave(0);
	return 0;
}

/* A copy of the memory in which three run. */
static void copy(void)
{
	pid_t child;

	wl_fill(shared, SIZE, 2);
	child = MUST(clone(of_the_copy, stacks[2] + sizeof(stacks[2]), CLONE_VM | SIGCHLD, NULL));
	await(&kin, 3);
	wl_child_ready();
	wl_wait();
	copies_turn = 1;
	WAIT_FOR(copies_turn == 2, "the copy is no longer shared");
	CHECK(turn == 0, "the copy is no copy: others write to it");
	wl_join(child);
	_exit(0);
}

static int grandchild(void *unused)
{
	(void)unused;
	kin++;
	await(&turn, 1);
	wl_fill(shared + 1000, 1000, 7);
	turn = 2;
	leave(getppid() == pids[1] ? 0 : 6);
	return 0;
}

static int child(void *unused)
{
	int status;
	pid_t copied;

	(void)unused;
	pids[1] = getpid();
	kin++;
	pids[2] = clone(grandchild, stacks[1] + sizeof(stacks[1]), CLONE_VM | SIGCHLD, NULL);
	await(&kin, 2);
	copied = wl_fork();
	if (copied == 0)
		copy();
	pids[3] = copied;
	await(&turn, 2);
	status = -1;
	waitpid(pids[2], &status, 0);
	if (status != 0)
		leave(7);
	wl_join(copied);
	leave(0);
	return 0;
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	shared = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(shared, SIZE, 1);
	pids[0] = MUST(clone(child, stacks[0] + sizeof(stacks[0]), CLONE_VM | SIGCHLD, NULL));
	WAIT_FOR(pids[3] != 0, "the family is not complete");

	wl_ready();
	CHECK(wl_differs(shared, SIZE, 1) < 0, "the memory is not as it was");
	if (wl_lose)
		MUST(madvise(shared, SIZE, MADV_DONTNEED));
	turn = 1;
	WAIT_FOR(turn == 2, "the grandchild does not share the memory");
	CHECK(wl_differs(shared + 1000, 1000, 7) < 0, "what the grandchild wrote is not here");
	CHECK(wl_differs(shared, 1000, 1) < 0 && shared[2000] == wl_byte(1, 2000), "what the copy wrote is here");
	wl_join(pids[0]);
	wl_ok();
}
