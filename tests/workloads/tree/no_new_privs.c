/* no_new_privs, set and not set. */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	bool set;
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	set = child == 0;
	if (set) {
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		wl_child_ready();
		wl_wait();
		CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "it is lost in the child");
		_exit(0);
	}
	wl_ready();
	if (wl_lose)
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "it is set in the root");
	wl_join(child);
	wl_ok();
}
