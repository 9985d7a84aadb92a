/* A pending, blocked SIGCHLD with what it says about the child that has ended. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct timespec none = { 0, 0 };
	siginfo_t info = { 0 };
	sigset_t chld;
	pid_t child;

	wl_init(argc, argv);
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	MUST(sigprocmask(SIG_BLOCK, &chld, NULL));
	child = MUST(fork());
	if (child == 0)
		_exit(77);
	WAIT_FOR(wl_task_state(child) == 'Z', "the child does not end");

	wl_ready();
	if (wl_lose)
		sigtimedwait(&chld, &info, &none);
	CHECK(sigtimedwait(&chld, &info, &none) == SIGCHLD, "SIGCHLD is not pending");
	CHECK(info.si_code == CLD_EXITED && info.si_pid == child && info.si_status == 77, "SIGCHLD: code %d pid %d status %d", info.si_code, info.si_pid,
	      info.si_status);
	CHECK(sigtimedwait(&chld, &info, &none) < 0, "a second SIGCHLD is pending");
	wl_ok();
}
