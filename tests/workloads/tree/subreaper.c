/* A subreaper gets the orphans of its tree, before the checkpoint and after; its children are none. */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int is, ends[2];
	pid_t reaper, parent, orphan = 0;

	wl_init(argc, argv);
	reaper = wl_fork();
	if (reaper == 0) {
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
		MUST(pipe2(ends, O_CLOEXEC));
		parent = wl_fork();
		if (parent == 0) {
			orphan = wl_fork();
			if (orphan == 0) {
				close(ends[0]);
				close(ends[1]);
				wl_child_ready();
				wl_wait();
				/* Becomes an orphan only now. */
				WAIT_FOR(access(wl_path("parent-gone"), F_OK) == 0, "nobody said that the parent is gone");
				_exit(21);
			}
			MUST(write(ends[1], &orphan, sizeof(orphan)));
			close(ends[0]);
			close(ends[1]);
			wl_child_ready();
			wl_wait();
			MUST(prctl(PR_GET_CHILD_SUBREAPER, &is));
			CHECK(is == 0, "the child of a subreaper is one as well");
			_exit(0);
		}
		MUST(read(ends[0], &orphan, sizeof(orphan)));
		close(ends[0]);
		close(ends[1]);
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(prctl(PR_SET_CHILD_SUBREAPER, 0));
		MUST(prctl(PR_GET_CHILD_SUBREAPER, &is));
		CHECK(is == 1, "it is no subreaper any more");
		wl_join(parent);
		MUST(close(MUST(creat(wl_path("parent-gone"), 0666))));
		MUST(waitpid(orphan, &is, 0));
		CHECK(WIFEXITED(is) && WEXITSTATUS(is) == 21, "the orphan ended with %#x", is);
		_exit(0);
	}

	wl_ready();
	MUST(prctl(PR_GET_CHILD_SUBREAPER, &is));
	CHECK(is == 0, "the root has become a subreaper");
	wl_join(reaper);
	wl_ok();
}
