// peer: no, CRIU 4.2 refuses shared memory descriptors
/* A child process in the same address space (CLONE_VM without CLONE_THREAD): both see every later mapping. */
#include <sched.h>

#include "workload.h"

static char stack[65536] __attribute__((aligned(16)));
static volatile int turn;
static uint8_t *volatile mapped;

static int child(void *unused)
{
	(void)unused;
	while (turn == 0)
		wl_nap();
	mapped = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	mapped[5] = 42;
	turn = 2;
	syscall(SYS_exit_group, wl_lose ? 1 : 0);
	return 0;
}

int main(int argc, char **argv)
{
	pid_t pid;

	wl_init(argc, argv);
	pid = MUST(clone(child, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));

	wl_ready();
	turn = 1;
	WAIT_FOR(turn == 2, "the two no longer share their memory");
	CHECK(mapped[5] == 42, "a mapping that the child made is not there");
	wl_join(pid);
	wl_ok();
}
