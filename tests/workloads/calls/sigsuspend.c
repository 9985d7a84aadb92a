/* sigsuspend: a signal blocked outside ends it, its handler runs under the inner mask, the outer one comes back. */
#include "blocked.h"

static volatile int handled, blocked_inside;

static void handler(int signal)
{
	sigset_t now;

	(void)signal;
	handled++;
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	blocked_inside = sigismember(&now, SIGHUP);
}

static long call(void)
{
	sigset_t outer, inner, now;
	long result;
	int error;

	sigemptyset(&outer);
	sigaddset(&outer, SIGUSR2);
	MUST0(pthread_sigmask(SIG_SETMASK, &outer, NULL));
	sigemptyset(&inner);
	sigaddset(&inner, SIGHUP);
	result = sigsuspend(&inner);
	error = errno;
	MUST0(pthread_sigmask(SIG_BLOCK, NULL, &now));
	CHECK(handled == 1 && blocked_inside == 1, "the handler ran %d times, SIGHUP was%s blocked", handled, blocked_inside ? "" : " not");
	CHECK(sigismember(&now, SIGUSR2) == 1 && sigismember(&now, SIGHUP) == 0, "the mask from before the call is lost");
	errno = error;
	return result;
}

static void release(void)
{
	MUST(syscall(SYS_tgkill, getpid(), blocked_tid, SIGUSR2));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler };

	wl_init(argc, argv);
	MUST(sigaction(SIGUSR2, &action, NULL));
	blocked_main((struct blocked_call){ .number = SYS_rt_sigsuspend, .call = call, .release = release, .result = -1, .error = EINTR });
}
