// peer: no, CRIU 4.2 carries no nested uts namespaces
/* A child in a namespace for host names of its own, and a child of that which is back at home. */
#include <sched.h>
#include <sys/utsname.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct utsname before, now;
	pid_t child;
	int home;

	wl_init(argc, argv);
	MUST(uname(&before));
	home = MUST(open("/proc/self/ns/uts", O_RDONLY));
	child = wl_fork();
	if (child == 0) {
		MUST(unshare(CLONE_NEWUTS));
		MUST(sethostname("frozen", 6));
		child = wl_fork();
		if (child == 0) {
			MUST(setns(home, CLONE_NEWUTS));
			close(home);
			wl_child_ready();
			wl_wait();
			MUST(uname(&now));
			CHECK(strcmp(before.nodename, now.nodename) == 0, "the grandchild's host is called %s", now.nodename);
			_exit(0);
		}
		close(home);
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(sethostname("lost", 4));
		MUST(uname(&now));
		CHECK(strcmp(now.nodename, "frozen") == 0, "the child's host is called %s", now.nodename);
		wl_join(child);
		_exit(0);
	}
	close(home);
	wl_ready();
	MUST(uname(&now));
	CHECK(strcmp(before.nodename, now.nodename) == 0, "the host was called %s, is called %s", before.nodename, now.nodename);
	wl_join(child);
	wl_ok();
}
