// refused: its first thread has ended
// peer: no, CRIU 4.2 cannot seize a leader that has exited
/* A process whose first thread has exited while another goes on: the leader is a zombie until the last thread ends. */
#include <pthread.h>

#include "workload.h"

static __thread int local;

static void *rest(void *unused)
{
	(void)unused;
	local = 17;
	WAIT_FOR(wl_task_state(getpid()) == 'Z', "the first thread does not end");
	wl_ready();
	if (wl_lose)
		local = 0;
	CHECK(wl_task_state(getpid()) == 'Z', "the leader's state is %c", wl_task_state(getpid()));
	CHECK(wl_gettid() != getpid(), "the thread has become the leader");
	CHECK(local == 17, "the thread-local value is %d", local);
	wl_ok();
}

int main(int argc, char **argv)
{
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	syscall(SYS_exit, 0);
}
