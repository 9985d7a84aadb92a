/* The dumpable attribute: set, and not set. */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct stat status;
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		MUST(prctl(PR_SET_DUMPABLE, 0));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(prctl(PR_SET_DUMPABLE, 1));
		CHECK(prctl(PR_GET_DUMPABLE) == 0, "the child is dumpable now: %d", prctl(PR_GET_DUMPABLE));
		_exit(0);
	}

	wl_ready();
	CHECK(prctl(PR_GET_DUMPABLE) == 1, "the root's attribute is %d", prctl(PR_GET_DUMPABLE));
	MUST(stat("/proc/self/mem", &status));
	wl_join(child);
	wl_ok();
}
