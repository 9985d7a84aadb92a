/* waitid for any child, without collecting it. */
#include "blocked.h"

static pid_t child;

static long call(void)
{
	siginfo_t info = { 0 };
	long result = waitid(P_ALL, 0, &info, WEXITED | WNOWAIT);

	if (result == 0)
		return info.si_pid == child && info.si_code == CLD_KILLED ? info.si_status : -2;
	return result;
}

static void release(void)
{
	MUST(kill(child, SIGKILL));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	child = wl_fork_idle();
	blocked_main((struct blocked_call){ .number = SYS_waitid, .call = call, .release = release, .result = SIGKILL });
}
