/* Signals that are ignored and wait nonetheless, since they are blocked: for the process, for its first thread and for another;
 * among them that of a timer, which stands still until it is taken. */
#include <pthread.h>
#include <signal.h>

#include "workload.h"

static pthread_barrier_t begun;
static volatile bool go;
static pid_t tid;

static void takes(int signal, const char *who)
{
	struct timespec none = { 0, 0 };
	sigset_t own;

	sigemptyset(&own);
	sigaddset(&own, signal);
	CHECK(sigtimedwait(&own, NULL, &none) == signal, "%s has lost signal %d", who, signal);
	CHECK(sigtimedwait(&own, NULL, &none) < 0, "%s has signal %d twice", who, signal);
}

static void *other(void *unused)
{
	struct timespec patience = { 5, 0 };
	sigset_t own;

	tid = wl_gettid();
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	takes(SIGUSR1, "the thread");
	/* Its first signal waits; the others come by themselves once that is taken. */
	sigemptyset(&own);
	sigaddset(&own, SIGRTMIN + 3);
	for (int i = 0; i < 5; i++)
		CHECK(sigtimedwait(&own, NULL, &patience) == SIGRTMIN + 3, "the timer stands still after %d", i);
	return unused;
}

int main(int argc, char **argv)
{
	struct itimerspec often = { { 0, 10000000 }, { 0, 10000000 } };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 3 };
	pthread_t thread;
	timer_t timer;
	sigset_t all;

	wl_init(argc, argv);
	sigfillset(&all);
	MUST(sigprocmask(SIG_SETMASK, &all, NULL));
	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, SIG_IGN);
	signal(SIGRTMIN + 3, SIG_IGN);
	MUST0(pthread_barrier_init(&begun, NULL, 2));
	MUST0(pthread_create(&thread, NULL, other, NULL));
	pthread_barrier_wait(&begun);
	MUST(syscall(SYS_tgkill, getpid(), tid, SIGUSR1));
	MUST(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1));
	MUST(kill(getpid(), SIGUSR2));
	event._sigev_un._tid = tid;
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
	MUST(timer_settime(timer, 0, &often, NULL));
	wl_sleep_ms(50);

	wl_ready();
	if (wl_lose)
		signal(SIGUSR2, SIG_IGN);
	takes(SIGUSR1, "the first thread");
	takes(SIGUSR2, "the process");
	go = true;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
