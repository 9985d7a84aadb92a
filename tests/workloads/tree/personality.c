// peer: no, CRIU 4.2 loses it
/* The personality (execution domain) of a process. */
#include <sys/personality.h>

#include "workload.h"

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		MUST(personality(ADDR_NO_RANDOMIZE | UNAME26 | ADDR_COMPAT_LAYOUT));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(personality(0));
		CHECK(personality(0xffffffff) == (ADDR_NO_RANDOMIZE | UNAME26 | ADDR_COMPAT_LAYOUT), "the child's is %#x", personality(0xffffffff));
		_exit(0);
	}
	wl_ready();
	CHECK(personality(0xffffffff) == 0, "the root's is %#x", personality(0xffffffff));
	wl_join(child);
	wl_ok();
}
