// flags: --file-locks
/* flock on a file that another open of it has locked. */
#include <sys/file.h>

#include "blocked.h"

static int holder, waiter;

static long call(void)
{
	return flock(waiter, LOCK_EX);
}

static void release(void)
{
	MUST(flock(holder, LOCK_UN));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	holder = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0600));
	waiter = MUST(open(wl_path("file"), O_RDWR));
	MUST(flock(holder, LOCK_EX));
	blocked_main((struct blocked_call){ .number = SYS_flock, .call = call, .release = release, .result = 0 });
}
