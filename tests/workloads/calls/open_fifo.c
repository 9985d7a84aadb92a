/* open of a FIFO, which waits for the other side. */
#include "blocked.h"

static long call(void)
{
	int fd = open(wl_path("fifo"), O_RDONLY);

	return fd < 0 ? fd : 0;
}

static void release(void)
{
	int fd = -1;

	/* A writer that does not wait finds the reader once it waits again. */
	WAIT_FOR((fd = open(wl_path("fifo"), O_WRONLY | O_NONBLOCK)) >= 0 || wl_lose, "nobody waits for a writer any more");
	wl_sleep_ms(10);
	close(fd);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	MUST(mkfifo(wl_path("fifo"), 0600));
	blocked_main((struct blocked_call){ .number = SYS_openat, .call = call, .release = release, .result = 0 });
}
