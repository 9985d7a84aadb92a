/* select on a pipe without a time limit. */
#include <sys/select.h>

#include "blocked.h"

static int ends[2];

static long call(void)
{
	fd_set readable;
	long result;

	FD_ZERO(&readable);
	FD_SET(ends[0], &readable);
	result = syscall(SYS_select, ends[0] + 1, &readable, NULL, NULL, NULL);
	return result == 1 && !FD_ISSET(ends[0], &readable) ? -2 : result;
}

static void release(void)
{
	MUST(write(ends[1], "x", 1));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	MUST(pipe(ends));
	blocked_main((struct blocked_call){ .number = SYS_select, .call = call, .release = release, .result = 1 });
}
