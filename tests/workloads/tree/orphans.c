/* Orphans that the root of the tree has inherited as a subreaper, as a daemon's children are. */
#include <sys/prctl.h>

#include "workload.h"

#define COUNT 3

int main(int argc, char **argv)
{
	pid_t orphans[COUNT];
	int ends[2], status;

	wl_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe2(ends, O_CLOEXEC));
	for (int i = 0; i < COUNT; i++) {
		pid_t parent = MUST(fork());

		if (parent == 0) {
			orphans[i] = wl_fork();
			if (orphans[i] == 0) {
				close(ends[0]);
				close(ends[1]);
				wl_child_ready();
				wl_wait();
				_exit(wl_lose ? 1 : 30 + i);
			}
			MUST(write(ends[1], &orphans[i], sizeof(pid_t)));
			_exit(0);
		}
		wl_join(parent);
		MUST(read(ends[0], &orphans[i], sizeof(pid_t)));
	}
	close(ends[0]);
	close(ends[1]);

	wl_ready();
	for (int i = 0; i < COUNT; i++) {
		CHECK(waitpid(orphans[i], &status, 0) == orphans[i], "orphan %d is not ours: %s", orphans[i], strerror(errno));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 30 + i, "orphan %d ended with %#x", i, status);
	}
	wl_ok();
}
