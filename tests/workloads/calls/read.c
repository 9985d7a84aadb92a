/* read from an empty pipe. */
#include "blocked.h"

static int ends[2];
static char got[8];

static long call(void)
{
	return read(ends[0], got, sizeof(got));
}

static void release(void)
{
	MUST(write(ends[1], "abc", 3));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	MUST(pipe(ends));
	blocked_main((struct blocked_call){ .number = SYS_read, .call = call, .release = release, .result = 3 });
}
