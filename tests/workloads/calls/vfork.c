// refused: vfork
/* A vfork in progress: the parent sleeps in the kernel until the child, which runs in its memory, is done. */
#include <sched.h>

#include "workload.h"

static char stack[65536];

static int child(void *unused)
{
	(void)unused;
	wl_say("ready\n");
	wl_wait();
	_exit(wl_lose ? 1 : 0);
}

int main(int argc, char **argv)
{
	int status;
	pid_t pid;

	wl_init(argc, argv);
	/* As vfork does it, but on a stack of the child's own, since it lives for long. */
	pid = MUST(clone(child, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL));
	MUST(waitpid(pid, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %#x", status);
	wl_ok();
}
