// peer: no, CRIU 4.2 fails on it by itself here
/*
 * A daemon as shells and containers have them: its parent has ended, so it is a child of the tree's root, a subreaper; but
 * it is in the session of a process that is further below.
 */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	pid_t leader, daemon, middle;
	int ends[2], status;

	wl_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe2(ends, O_CLOEXEC));
	middle = wl_fork();
	if (middle == 0) {
		/* The leader is no sibling of the daemon's. */
		leader = wl_fork();
		if (leader == 0) {
			pid_t own = MUST(setsid());
			pid_t parent = MUST(fork());

			if (parent == 0) {
				daemon = wl_fork();
				if (daemon == 0) {
					close(ends[0]);
					close(ends[1]);
					wl_child_ready();
					wl_wait();
					_exit(!wl_lose && getsid(0) == own && getpgrp() == own ? 30 : 1);
				}
				MUST(write(ends[1], &daemon, sizeof(daemon)));
				_exit(0);
			}
			wl_join(parent);
			close(ends[0]);
			close(ends[1]);
			wl_child_ready();
			wl_wait();
			_exit(getsid(0) == own ? 0 : 1);
		}
		close(ends[0]);
		close(ends[1]);
		wl_child_ready();
		wl_wait();
		wl_join(leader);
		_exit(0);
	}
	MUST(read(ends[0], &daemon, sizeof(daemon)));
	close(ends[0]);
	close(ends[1]);

	wl_ready();
	CHECK(waitpid(daemon, &status, 0) == daemon, "the daemon %d is not ours: %s", daemon, strerror(errno));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 30, "the daemon ended with %#x", status);
	wl_join(middle);
	CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD, "there is a child more than before");
	wl_ok();
}
