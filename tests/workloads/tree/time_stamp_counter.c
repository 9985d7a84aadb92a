// gap: the mode is not asked for
// peer: no, CRIU 4.2 loses it
/* A process that may not read the time stamp counter (PR_SET_TSC): doing so raises SIGSEGV. */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int mode = 0, status;
	pid_t child, probe;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(prctl(PR_SET_TSC, PR_TSC_ENABLE));
		MUST(prctl(PR_GET_TSC, &mode));
		CHECK(mode == PR_TSC_SIGSEGV, "its mode is %d", mode);
		probe = MUST(fork());
		if (probe == 0) {
			__builtin_ia32_rdtsc();
			_exit(0);
		}
		MUST(waitpid(probe, &status, 0));
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "the counter can be read");
		_exit(0);
	}
	wl_ready();
	MUST(prctl(PR_GET_TSC, &mode));
	CHECK(mode == PR_TSC_ENABLE, "the root's mode is %d", mode);
	wl_join(child);
	wl_ok();
}
