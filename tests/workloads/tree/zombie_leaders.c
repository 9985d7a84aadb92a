// peer: no, CRIU 4.2 restores such orphans as children of pid 1
/* Zombies that still name a session and a group with living members. */
#include <sys/prctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	pid_t leader, member = 0;
	int ends[2], status;

	wl_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe2(ends, O_CLOEXEC));
	leader = MUST(fork());
	if (leader == 0) {
		MUST(setsid());
		member = wl_fork();
		if (member == 0) {
			close(ends[0]);
			close(ends[1]);
			wl_child_ready();
			wl_wait();
			if (wl_lose)
				MUST(setsid());
			_exit(getsid(0) == getppid() ? 5 : getsid(0) == getpid() ? 6 : 7);
		}
		MUST(write(ends[1], &member, sizeof(member)));
		_exit(9);
	}
	MUST(read(ends[0], &member, sizeof(member)));
	close(ends[0]);
	close(ends[1]);
	WAIT_FOR(wl_task_state(leader) == 'Z', "the leader does not end");

	wl_ready();
	CHECK(wl_task_state(leader) == 'Z', "the leader is no zombie");
	CHECK(getsid(member) == leader || wl_lose, "the member's session is %d, its leader was %d", getsid(member), leader);
	MUST(waitpid(member, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the member ended with %#x", status);
	CHECK(waitpid(leader, &status, 0) == leader && WEXITSTATUS(status) == 9, "the leader ended with %#x", status);
	wl_ok();
}
