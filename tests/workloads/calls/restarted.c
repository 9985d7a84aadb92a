/* A read that a handler with SA_RESTART interrupts again and again, before and after: it never fails with EINTR. */
#include "blocked.h"

static int ends[2];
static volatile long handled;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static long call(void)
{
	char byte;

	return read(ends[0], &byte, 1);
}

static void release(void)
{
	long before = handled;

	for (int i = 0; i < 10; i++) {
		MUST(syscall(SYS_tgkill, getpid(), blocked_tid, SIGUSR2));
		WAIT_FOR(handled > before + i, "the handler does not run");
	}
	MUST(write(ends[1], "x", 1));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };

	wl_init(argc, argv);
	MUST(pipe(ends));
	MUST(sigaction(SIGUSR2, &action, NULL));
	blocked_main((struct blocked_call){ .number = SYS_read, .call = call, .release = release, .result = 1 });
}
