/* pause ends with the first signal whose handler runs, and not before. */
#include "blocked.h"

static volatile int handled;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static long call(void)
{
	long result = syscall(SYS_pause);
	int error = errno;

	CHECK(handled == 1, "pause returned, the handler had run %d times", handled);
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
	blocked_main((struct blocked_call){ .number = SYS_pause, .call = call, .release = release, .result = -1, .error = EINTR });
}
