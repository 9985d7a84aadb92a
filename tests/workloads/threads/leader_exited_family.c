// peer: no, CRIU 4.2 cannot seize a leader that has exited
/*
 * Two processes of a family whose first threads have exited, one the other's child: the pipe between them is one, their
 * memory is shared, the status of a zombie waits. Both threads of the child have asked for a signal at the death of the
 * thread that is its parent, which lives.
 */
#include <pthread.h>
#include <sys/prctl.h>

#include "workload.h"

static int ends[2];
static pid_t younger, dead;
static struct {
	volatile pid_t younger_ready, elder_ready;
	volatile int word;
} *shared;

static bool has_first(void)
{
	return wl_task_state(getpid()) != 'Z';
}

static void *of_younger(void *unused)
{
	int wanted = 0;
	sigset_t set;
	char byte;

	(void)unused;
	WAIT_FOR(!has_first(), "the first thread does not end");
	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	shared->younger_ready = getpid();
	wl_wait();
	CHECK(!has_first(), "the younger has its first thread");
	MUST(prctl(PR_GET_PDEATHSIG, &wanted));
	CHECK(wanted == SIGUSR1, "the signal at the parent's death is %d", wanted);
	MUST(sigpending(&set));
	CHECK(!sigismember(&set, SIGUSR1) && !sigismember(&set, SIGUSR2), "a signal came although the parent lives");
	CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x', "the pipe is empty");
	shared->word = 1234;
	syscall(SYS_exit, 4);
	return NULL;
}

static void *of_elder(void *unused)
{
	int status;

	(void)unused;
	WAIT_FOR(!has_first() && shared->younger_ready, "the younger does not get ready");
	shared->elder_ready = getpid();
	wl_wait();
	CHECK(!has_first(), "the elder has its first thread");
	MUST(write(ends[1], wl_lose ? "y" : "x", 1));
	CHECK(waitpid(younger, &status, 0) == younger && status == 4 << 8, "the younger ended with %#x", status);
	CHECK(shared->word == 1234, "their memory is not one");
	CHECK(waitpid(dead, &status, 0) == dead && status == 9 << 8, "the zombie has status %#x", status);
	syscall(SYS_exit, 3);
	return NULL;
}

/* Goes on without its first thread. Which thread's status is the process's is for the kernel to say: both have the same. */
static void lose_first(void *(*rest)(void *), int status)
{
	pthread_t thread;

	MUST0(pthread_create(&thread, NULL, rest, NULL));
	syscall(SYS_exit, status);
}

static void be_elder(void)
{
	sigset_t blocked;

	MUST(pipe(ends));
	younger = MUST(fork());
	if (younger == 0) {
		sigemptyset(&blocked);
		sigaddset(&blocked, SIGUSR1);
		sigaddset(&blocked, SIGUSR2);
		MUST(sigprocmask(SIG_BLOCK, &blocked, NULL));
		WAIT_FOR(wl_task_state(getppid()) == 'Z', "the parent's first thread does not end");
		MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
		lose_first(of_younger, 4);
	}
	dead = MUST(fork());
	if (dead == 0)
		_exit(9);
	lose_first(of_elder, 3);
}

int main(int argc, char **argv)
{
	pid_t elder;
	int status;

	wl_init(argc, argv);
	shared = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	elder = MUST(fork());
	if (elder == 0)
		be_elder();
	WAIT_FOR(shared->elder_ready, "the elder does not get ready");

	wl_ready();
	CHECK(waitpid(elder, &status, 0) == elder && status == 3 << 8, "the elder ended with %#x", status);
	wl_ok();
}
