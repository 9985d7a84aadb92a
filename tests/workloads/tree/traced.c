// refused: traced
/* A child that another process of the tree traces. A process has one tracer, so this must be refused and go on. */
#include <sys/ptrace.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int status;
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork_waiting();
	if (child == 0) {
		_exit(wl_lose ? 1 : 0);
	}
	MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
	wl_ready();
	MUST(waitpid(child, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the traced child ended with %#x", status);
	wl_ok();
}
