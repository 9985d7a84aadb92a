// peer: no, CRIU 4.2 loses PR_SET_MEMORY_MERGE
/* KSM: a mapping advised MADV_MERGEABLE, and a whole process that asked for it by prctl. */
#include <sys/prctl.h>

#include "workload.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

int main(int argc, char **argv)
{
	uint8_t *advised, *plain;
	pid_t child;

	wl_init(argc, argv);
	advised = MUST(mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(advised, 8 * 4096, MADV_MERGEABLE));
	wl_fill(advised, 8 * 4096, 1);
	child = wl_fork();
	if (child == 0) {
		MUST(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
		wl_child_ready();
		wl_wait();
		CHECK(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1, "the process no longer asks for merging");
		plain = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		CHECK(wl_has_vmflag(plain, "mg"), "a new mapping is not mergeable");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(madvise(advised, 8 * 4096, MADV_UNMERGEABLE));
	wl_join(child);
	CHECK(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 0, "a process that did not ask for merging does now");
	CHECK(wl_has_vmflag(advised, "mg"), "the mapping is no longer mergeable");
	CHECK(wl_differs(advised, 8 * 4096, 1) < 0, "contents differ");
	wl_ok();
}
