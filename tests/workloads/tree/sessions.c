// peer: no, CRIU 4.2 restores such orphans as children of pid 1
/* Sessions of children, a process in a session whose leader has exited, and one in a group whose leader has exited. */
#include <sys/prctl.h>

#include "workload.h"

/* A child that leads a session or group, has a child of its own in it, and exits; the grandchild goes on without it. */
static void leave_behind(bool session, pid_t *orphan)
{
	int ends[2];
	pid_t leader;

	MUST(pipe2(ends, O_CLOEXEC));
	leader = MUST(fork());
	if (leader == 0) {
		pid_t grandchild;

		MUST(session ? setsid() : setpgid(0, 0));
		grandchild = wl_fork();
		if (grandchild == 0) {
			pid_t group = getpgid(0), sid = getsid(0);

			close(ends[0]);
			close(ends[1]);
			wl_child_ready();
			wl_wait();
			if (wl_lose && session)
				MUST(setsid());
			CHECK(getsid(0) == sid && getpgid(0) == group, "orphan: session and group were %d %d, are %d %d", sid, group, getsid(0),
			      getpgid(0));
			CHECK(getpgid(0) != getpid(), "orphan: it has become a leader");
			_exit(0);
		}
		MUST(write(ends[1], &grandchild, sizeof(grandchild)));
		_exit(0);
	}
	wl_join(leader);
	CHECK(read(ends[0], orphan, sizeof(*orphan)) == sizeof(*orphan), "no word from the leader");
	close(ends[0]);
	close(ends[1]);
}

int main(int argc, char **argv)
{
	pid_t of_session, of_group, own_session;

	wl_init(argc, argv);
	/* Orphans come to us, so that they stay in the tree. */
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	leave_behind(true, &of_session);
	leave_behind(false, &of_group);
	own_session = wl_fork();
	if (own_session == 0) {
		MUST(setsid());
		wl_child_ready();
		wl_wait();
		CHECK(getsid(0) == getpid() && getpgid(0) == getpid(), "the session leader no longer is one");
		_exit(0);
	}

	wl_ready();
	CHECK(getsid(own_session) == own_session, "the child's session is %d", getsid(own_session));
	wl_join(of_session);
	wl_join(of_group);
	wl_join(own_session);
	wl_ok();
}
