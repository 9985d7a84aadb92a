// peer: no, CRIU 4.2 refuses shared memory descriptors, and this needs one
/* A child that shares memory and the table of signal actions (CLONE_SIGHAND). */
#include <sched.h>

#include "workload.h"

static char stack[65536] __attribute__((aligned(16)));
static volatile int turn;

static void handler(int signal)
{
	(void)signal;
}

static int child(void *unused)
{
	struct sigaction action = { .sa_handler = handler };

	(void)unused;
	while (turn == 0)
		wl_nap();
	sigaction(SIGUSR2, &action, NULL);
	turn = 2;
	syscall(SYS_exit_group, 0);
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action;
	pid_t pid;

	wl_init(argc, argv);
	pid = MUST(clone(child, stack + sizeof(stack), CLONE_VM | CLONE_SIGHAND | SIGCHLD, NULL));

	wl_ready();
	turn = 1;
	WAIT_FOR(turn == 2, "the two no longer share their memory");
	if (wl_lose)
		signal(SIGUSR2, SIG_DFL);
	MUST(sigaction(SIGUSR2, NULL, &action));
	CHECK(action.sa_handler == handler, "an action that the child set does not hold for the parent");
	wl_join(pid);
	wl_ok();
}
