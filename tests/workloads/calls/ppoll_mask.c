/* ppoll with a signal mask of its own: a signal blocked outside the call ends it, and the mask outside is as before. */
#include <poll.h>

#include "blocked.h"

static int ends[2];
static volatile int handled;
static pid_t blocked_pid;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static long call(void)
{
	struct pollfd watched = { ends[0], POLLIN, 0 };
	sigset_t usr2, inside, now;
	long result;
	int error;

	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	MUST0(pthread_sigmask(SIG_BLOCK, &usr2, &inside));
	sigdelset(&inside, SIGUSR2);
	result = ppoll(&watched, 1, NULL, &inside);
	error = errno;
	MUST0(pthread_sigmask(SIG_BLOCK, NULL, &now));
	CHECK(sigismember(&now, SIGUSR2) == 1, "the mask from before the call is lost");
	CHECK(handled == 1, "the handler ran %d times", handled);
	errno = error;
	return result;
}

static void release(void)
{
	MUST(syscall(SYS_tgkill, blocked_pid, blocked_tid, SIGUSR2));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler };

	wl_init(argc, argv);
	blocked_pid = getpid();
	MUST(pipe(ends));
	MUST(sigaction(SIGUSR2, &action, NULL));
	blocked_main((struct blocked_call){ .number = SYS_ppoll, .call = call, .release = release, .result = -1, .error = EINTR });
}
