// peer: no, CRIU 4.2 carries no pid namespace within that of the tree
/*
 * What becomes of a family in a pid namespace within the tree: zombies in it, a daemon whose session's leader is no more, a
 * job of the outside and one of the inside, a thread that a timer tells, signals that wait; and a namespace that has ended.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

#include "workload.h"

static void check_zombie(pid_t child, int status)
{
	int got;

	MUST(waitpid(child, &got, 0));
	CHECK(got == status, "child %d has ended with %#x instead of %#x", child, got, status);
}

/* A process that has ended, with this status, and is not waited for. */
static pid_t leave_zombie(int status)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		if (status & 0x7f)
			raise(status & 0x7f);
		_exit(status >> 8);
	}
	WAIT_FOR(waitid(P_PID, child, &(siginfo_t){ 0 }, WEXITED | WNOWAIT) == 0, "child %d does not end", child);
	return child;
}

static pid_t told;

static void *listen(void *ready)
{
	sigset_t set;
	int signal;

	told = gettid();
	__atomic_store_n((int *)ready, 1, __ATOMIC_RELEASE);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	/* A timer's signals go to this thread alone. */
	while (sigwait(&set, &signal) == 0)
		__atomic_add_fetch((int *)ready, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* In a session whose leader is no more, the child of the init; it says so itself. */
static void daemonize(void)
{
	pid_t child = wl_fork();
	pid_t leader;

	if (child != 0) {
		wl_join(child);
		return;
	}
	MUST(setsid());
	leader = getpid();
	if (MUST(fork()) != 0) {
		wl_child_ready();
		_exit(0);
	}
	close(wl_sync_fd);
	wl_sync_fd = -1;
	WAIT_FOR(getppid() == 1, "the daemon has another parent");
	close(MUST(open(wl_path("orphan"), O_CREAT | O_WRONLY, 0644)));
	wl_wait();
	CHECK(getsid(0) == leader, "the daemon's session is %d instead of %d", getsid(0), leader);
	CHECK(getpgrp() == leader, "the daemon's group is %d instead of %d", getpgrp(), leader);
	MUST(unlink(wl_path("orphan")));
	_exit(0);
}

/* The init: what it has is what is proved. */
static void be_init(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2 };
	struct itimerspec when = { { 0, 20000000 }, { 0, 20000000 } };
	pid_t exited, killed, job;
	int count = 0, before;
	pthread_t thread;
	timer_t timer;
	sigset_t set, waiting;
	siginfo_t info;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	exited = leave_zombie(3 << 8);
	killed = leave_zombie(SIGKILL);
	daemonize();
	WAIT_FOR(access(wl_path("orphan"), F_OK) == 0, "there is no daemon");
	job = wl_fork();
	if (job == 0) {
		MUST(setpgid(0, 0));
		wl_child_ready();
		wl_wait();
		CHECK(getpgrp() == getpid(), "the job's group is %d", getpgrp());
		CHECK(getsid(0) == 0, "the job's session is %d", getsid(0));
		_exit(0);
	}
	MUST0(pthread_create(&thread, NULL, listen, &count));
	WAIT_FOR(__atomic_load_n(&count, __ATOMIC_ACQUIRE) > 0, "the thread does not listen");
	event._sigev_un._tid = told;
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
	MUST(kill(getpid(), SIGUSR1));
	wl_child_ready();
	wl_wait();
	MUST(timer_settime(timer, 0, &when, NULL));
	before = __atomic_load_n(&count, __ATOMIC_ACQUIRE);
	WAIT_FOR(__atomic_load_n(&count, __ATOMIC_ACQUIRE) > before + 2, "the timer does not tell the thread");
	CHECK(getpid() == 1, "the init is %d", getpid());
	CHECK(getpgrp() == 0 && getsid(0) == 0, "the init is in group %d, session %d", getpgrp(), getsid(0));
	MUST(sigpending(&waiting));
	CHECK(sigismember(&waiting, SIGUSR1), "the signal does not wait any more");
	sigdelset(&set, SIGUSR2);
	MUST(sigwaitinfo(&set, &info));
	CHECK(info.si_pid == 1, "the signal is from %d", info.si_pid);
	check_zombie(exited, wl_lose ? 0 : 3 << 8);
	check_zombie(killed, SIGKILL);
	wl_join(job);
	WAIT_FOR(access(wl_path("orphan"), F_OK) != 0, "the daemon does not end");
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t init, shell, gone, dead;

	wl_init(argc, argv);
	/* A job of a shell, as it were: its group is of the outside. */
	shell = wl_fork();
	if (shell == 0) {
		MUST(setpgid(0, 0));
		MUST(unshare(CLONE_NEWPID));
		init = wl_fork();
		if (init == 0)
			be_init();
		/* Ended inside, and not waited for out here. */
		gone = leave_zombie(5 << 8);
		wl_child_ready();
		wl_wait();
		check_zombie(gone, 5 << 8);
		wl_join(init);
		_exit(0);
	}
	/* A namespace of which there is nothing but what its init has left. */
	dead = wl_fork();
	if (dead == 0) {
		MUST(unshare(CLONE_NEWPID));
		gone = leave_zombie(7 << 8);
		wl_child_ready();
		wl_wait();
		CHECK(fork() < 0 && errno == ENOMEM, "there is life in the namespace that has ended");
		check_zombie(gone, 7 << 8);
		_exit(0);
	}
	wl_ready();
	wl_join(shell);
	wl_join(dead);
	wl_ok();
}
