/* The signal masks of threads, real-time signals included. */
#include "scheduling.h"

static void set(int number)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	if (number > 0) {
		sigaddset(&mask, SIGRTMIN + number);
		sigaddset(&mask, SIGRTMAX);
	}
	if (number == 2)
		sigaddset(&mask, SIGTERM);
	MUST0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
}

static void describe(char *text, size_t size)
{
	uint64_t mask;

	MUST(syscall(SYS_rt_sigprocmask, 0, NULL, &mask, 8));
	snprintf(text, size, "%#lx", mask);
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
