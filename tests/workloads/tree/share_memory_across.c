// refused: of which its parent has no part
/* Grandparent and grandchild share their memory; who stood between them has called execve since, and has its own. */
#include <sched.h>

#include "workload.h"

static char stacks[2][65536] __attribute__((aligned(16)));
static volatile int turn;
static char *volatile between[4];

static int grandchild(void *unused)
{
	(void)unused;
	while (turn == 0)
		wl_nap();
	turn++;
	syscall(SYS_exit_group, 0);
	return 0;
}

static int child(void *unused)
{
	(void)unused;
	if (clone(grandchild, stacks[1] + sizeof(stacks[1]), CLONE_VM | SIGCHLD, NULL) > 0)
		execv("/proc/self/exe", (char **)between);
	syscall(SYS_exit_group, 1);
	return 0;
}

int main(int argc, char **argv)
{
	pid_t pid;

	if (argc > 2 && strcmp(argv[2], "--between") == 0) {
		snprintf(wl_dir, sizeof(wl_dir), "%s", argv[1]);
		wl_say("ready\n");
		wl_wait();
		MUST(wait(NULL));
		return 0;
	}
	wl_init(argc, argv);
	memcpy((void *)between, (char *[]){ argv[0], argv[1], "--between", NULL }, sizeof(between));
	pid = MUST(clone(child, stacks[0] + sizeof(stacks[0]), CLONE_VM | SIGCHLD, NULL));

	wl_wait();
	turn = wl_lose ? 7 : 1;
	WAIT_FOR(turn == 2 || turn == 8, "the grandchild does not see what is written here");
	CHECK(turn == 2, "the turn is %d", turn);
	wl_join(pid);
	wl_ok();
}
