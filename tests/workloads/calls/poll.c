// peer: no, CRIU 4.2 lets the interruption show (EINTR)
/* poll on two pipes without a time limit. */
#include <poll.h>

#include "blocked.h"

static int first[2], second[2];

static long call(void)
{
	struct pollfd watched[] = { { first[0], POLLIN, 0 }, { second[0], POLLIN, 0 } };

	return syscall(SYS_poll, watched, 2, -1);
}

static void release(void)
{
	MUST(write(second[1], "x", 1));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	MUST(pipe(first));
	MUST(pipe(second));
	blocked_main((struct blocked_call){ .number = SYS_poll, .call = call, .release = release, .result = 1 });
}
