// gap: a process that forbids itself writable and executable memory cannot be entered
// peer: no, CRIU 4.2 neither carries it nor can it enter such a process
/* A process that has sworn off memory both writable and executable (PR_SET_MDWE, Linux 6.3), beside one that has not. */
#include <sys/prctl.h>

#include "workload.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

static void verify(const char *who)
{
	void *map;

	CHECK(prctl(PR_GET_MDWE, 0, 0, 0, 0) == PR_MDWE_REFUSE_EXEC_GAIN, "%s: it is %d", who, prctl(PR_GET_MDWE, 0, 0, 0, 0));
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(map == MAP_FAILED && errno == EACCES, "%s: it can have writable and executable memory", who);
}

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		MUST(prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0));
		wl_child_ready();
		wl_wait();
		verify("the child");
		_exit(0);
	}
	wl_ready();
	if (wl_lose)
		MUST(prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0));
	CHECK(prctl(PR_GET_MDWE, 0, 0, 0, 0) == 0, "the root has sworn it off as well");
	wl_join(child);
	wl_ok();
}
