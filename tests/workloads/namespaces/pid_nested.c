// peer: no, CRIU 4.2 carries no pid namespace within that of the tree
/*
 * Pid namespaces within the tree: an init with a child, a child beside it, and one deeper still; all keep their numbers.
 * Somebody is to have his children in a namespace that has had nobody yet.
 */
#include <sched.h>

#include "workload.h"

/* Forks into the namespace that is for children; the child is there under this number. */
static pid_t child_numbered(pid_t number)
{
	pid_t child = wl_fork();

	if (child == 0)
		CHECK(getpid() == number, "the child is %d instead of %d", getpid(), number);
	return child;
}

static void prove(pid_t number, pid_t parent)
{
	wl_wait();
	if (wl_lose)
		number++;
	CHECK(getpid() == number, "its number is %d instead of %d", getpid(), number);
	CHECK(getppid() == parent, "its parent is %d instead of %d", getppid(), parent);
}

/* A child that is born now is the first in its namespace. */
static void child_is_init(void)
{
	pid_t child = MUST(fork());

	if (child == 0)
		_exit(getpid() == 1 ? 0 : 1);
	wl_join(child);
}

int main(int argc, char **argv)
{
	pid_t init, beside, own, grandchild, deeper;

	wl_init(argc, argv);
	own = getpid();
	MUST(unshare(CLONE_NEWPID));
	init = child_numbered(1);
	if (init == 0) {
		grandchild = child_numbered(2);
		if (grandchild == 0) {
			MUST(unshare(CLONE_NEWPID));
			deeper = child_numbered(1);
			if (deeper == 0) {
				MUST(unshare(CLONE_NEWPID));
				wl_child_ready();
				prove(1, 0);
				child_is_init();
				_exit(0);
			}
			wl_child_ready();
			prove(2, 1);
			wl_join(deeper);
			_exit(0);
		}
		wl_child_ready();
		prove(1, 0);
		wl_join(grandchild);
		/* Not before the one beside it has ended: that would end with this. */
		pause();
	}
	beside = wl_fork();
	if (beside == 0) {
		MUST(setsid());
		own = getpid();
		wl_child_ready();
		prove(own, 0);
		CHECK(getsid(0) == own, "its session is %d", getsid(0));
		_exit(0);
	}
	wl_ready();
	CHECK(getpid() == own, "its number is %d instead of %d", getpid(), own);
	wl_join(beside);
	/* The namespace is still that of its children. */
	grandchild = MUST(fork());
	if (grandchild == 0)
		_exit(getppid() == 0 ? 0 : 1);
	wl_join(grandchild);
	kill(init, SIGKILL);
	MUST(waitpid(init, NULL, 0));
	wl_ok();
}
