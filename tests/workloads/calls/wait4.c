/* wait4 for a child that is still running. */
#include "blocked.h"

static pid_t child;

static long call(void)
{
	int status = 0;
	long result = syscall(SYS_wait4, child, &status, 0, NULL);

	if (result == child && WIFEXITED(status))
		return WEXITSTATUS(status);
	return result == child ? -2 : result;
}

static void release(void)
{
	MUST(kill(child, SIGUSR2));
}

int main(int argc, char **argv)
{
	sigset_t usr2;
	int signal;

	wl_init(argc, argv);
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	MUST(sigprocmask(SIG_BLOCK, &usr2, NULL));
	child = wl_fork();
	if (child == 0) {
		wl_child_ready();
		sigwait(&usr2, &signal);
		_exit(37);
	}
	blocked_main((struct blocked_call){ .number = SYS_wait4, .call = call, .release = release, .result = 37 });
}
