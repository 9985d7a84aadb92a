// peer: no, CRIU 4.2 lets the interruption show (EINTR)
/* sigwaitinfo. The kernel itself does not restart this call: the engine must, unless a signal is due. */
#include "blocked.h"

static long call(void)
{
	siginfo_t info = { 0 };
	sigset_t waited;
	long result;

	sigemptyset(&waited);
	sigaddset(&waited, SIGRTMIN + 3);
	result = syscall(SYS_rt_sigtimedwait, &waited, &info, NULL, 8);
	return result > 0 && (info.si_code != SI_QUEUE || info.si_value.sival_int != 4711) ? -2 : result;
}

static void release(void)
{
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 4711 }));
}

int main(int argc, char **argv)
{
	sigset_t waited;

	wl_init(argc, argv);
	sigemptyset(&waited);
	sigaddset(&waited, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &waited, NULL));
	blocked_main((struct blocked_call){ .number = SYS_rt_sigtimedwait, .call = call, .release = release, .result = SIGRTMIN + 3 });
}
