/* write into a full pipe. */
#include "blocked.h"

static int ends[2];

static long call(void)
{
	return write(ends[1], "last", 4);
}

static void release(void)
{
	static char data[65536];

	CHECK(read(ends[0], data, sizeof(data)) == sizeof(data), "the pipe did not hold its 64 KiB");
}

int main(int argc, char **argv)
{
	static char data[65536];

	wl_init(argc, argv);
	MUST(pipe(ends));
	MUST(write(ends[1], data, sizeof(data)));
	blocked_main((struct blocked_call){ .number = SYS_write, .call = call, .release = release, .result = 4 });
}
