// peer: no, CRIU 4.2 cannot seize a leader that has exited
/* The signal at its parent's death for which the first thread of a process has asked, which has exited since. */
#include <pthread.h>
#include <sys/prctl.h>

#include "workload.h"

static volatile bool *waits;

static void *rest(void *unused)
{
	(void)unused;
	WAIT_FOR(wl_task_state(getpid()) == 'Z', "the first thread does not end");
	*waits = true;
	wl_wait();
	MUST(close(MUST(creat(wl_path("looked"), 0666))));
	wl_sleep_ms(8000);
	wl_fail("no signal came at the parent's death");
	return NULL;
}

static void be_child(void)
{
	pthread_t thread;

	if (!wl_lose)
		MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	syscall(SYS_exit, 0);
}

int main(int argc, char **argv)
{
	pid_t parent, child;
	int status;

	wl_init(argc, argv);
	waits = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	parent = wl_fork();
	if (parent == 0) {
		child = MUST(fork());
		if (child == 0)
			be_child();
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("looked"), F_OK) == 0, "the child did not look");
		_exit(0);
	}
	WAIT_FOR(*waits, "the child does not get ready");

	wl_ready();
	wl_join(parent);
	child = MUST(waitpid(-1, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "the child ended with %#x", status);
	wl_ok();
}
