/* Transparent huge pages: a filled 2 MiB range advised for them, and the process-wide switch against them in a child. */
#include <sys/prctl.h>

#include "workload.h"

#define HUGE (2ul << 20)

int main(int argc, char **argv)
{
	uint8_t *map, *range;
	pid_t child;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, 4 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	range = (uint8_t *)(((unsigned long)map + HUGE - 1) & ~(HUGE - 1));
	MUST(madvise(range, 2 * HUGE, MADV_HUGEPAGE));
	wl_fill(range, HUGE + 4096, 1);
	child = wl_fork();
	if (child == 0) {
		MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
		CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "the process no longer refuses huge pages");
		CHECK(wl_differs(range, HUGE + 4096, 1) < 0, "the child's contents differ");
		_exit(0);
	}

	wl_ready();
	wl_join(child);
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0, "the process refuses huge pages now");
	CHECK(wl_has_vmflag(range, "hg"), "the advice for huge pages is lost");
	CHECK(wl_differs(range, HUGE + 4096, 1) < 0, "contents differ at %zd", wl_differs(range, HUGE + 4096, 1));
	CHECK(range[2 * HUGE - 1] == 0, "an untouched end is not zero");
	wl_ok();
}
