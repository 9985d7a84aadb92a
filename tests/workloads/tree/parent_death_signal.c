/* The signal that a child has asked for at its parent's death. */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int wanted, status;
	pid_t parent, child;

	wl_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	parent = wl_fork();
	if (parent == 0) {
		child = wl_fork();
		if (child == 0) {
			MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
			wl_child_ready();
			wl_wait();
			if (wl_lose)
				MUST(prctl(PR_SET_PDEATHSIG, 0));
			MUST(prctl(PR_GET_PDEATHSIG, &wanted));
			CHECK(wanted == SIGUSR1, "the signal is %d", wanted);
			MUST(close(MUST(creat(wl_path("looked"), 0666))));
			wl_sleep_ms(8000);
			wl_fail("no signal came at the parent's death");
		}
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("looked"), F_OK) == 0, "the child did not look");
		_exit(0);
	}

	wl_ready();
	wl_join(parent);
	child = MUST(waitpid(-1, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "the child ended with %#x", status);
	wl_ok();
}
