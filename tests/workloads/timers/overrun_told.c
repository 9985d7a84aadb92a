// peer: no, CRIU 4.2 loses the count
/* timer_getoverrun(2) says how often a timer had expired when its signal was last taken, also when it is asked later. */
#include <pthread.h>

#include "workload.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile pid_t thread_tid;
static volatile int thread_overrun = -1;
static volatile bool stop;

static sigset_t just(int signal)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	return set;
}

static void *receive(void *unused)
{
	struct timespec limit = { 5, 0 };
	sigset_t own = just(SIGRTMIN + 2);
	siginfo_t info;

	(void)unused;
	thread_tid = wl_gettid();
	if (sigtimedwait(&own, &info, &limit) > 0)
		thread_overrun = info.si_overrun;
	while (!stop)
		wl_nap();
	return NULL;
}

/* Starts a timer so long ago that `expirations` are missed, and the next one is half a period away. */
static timer_t start(clockid_t clock, long period, int expirations, struct sigevent event)
{
	struct itimerspec timer = { { period, 0 }, { 0, 0 } };
	struct timespec now;
	timer_t id;

	MUST(clock_gettime(clock, &now));
	timer.it_value.tv_sec = now.tv_sec - period * expirations - period / 2;
	timer.it_value.tv_nsec = now.tv_nsec;
	MUST(timer_create(clock, &event, &id));
	MUST(timer_settime(id, TIMER_ABSTIME, &timer, NULL));
	return id;
}

static void check(timer_t id, int overrun, long period, const char *what)
{
	struct itimerspec now;

	CHECK(timer_getoverrun(id) == overrun, "%s: %d overruns, %d were told of", what, timer_getoverrun(id), overrun);
	MUST(timer_gettime(id, &now));
	CHECK(now.it_interval.tv_sec == period && now.it_interval.tv_nsec == 0, "%s: interval %ld", what, (long)now.it_interval.tv_sec);
	CHECK(now.it_value.tv_sec <= (period + 1) / 2 && now.it_value.tv_sec >= period / 2 - 60, "%s: %ld s of %ld s are left", what, (long)now.it_value.tv_sec, period);
}

int main(int argc, char **argv)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
	sigset_t own = just(SIGRTMIN + 1), other = just(SIGRTMIN + 2), pending;
	struct timespec limit = { 2, 0 };
	struct itimerspec anew = { { 100, 0 }, { 100, 0 } };
	timer_t real, mono;
	pthread_t thread;
	long period;
	siginfo_t info;
	union sigval value = { .sival_int = 77 };

	wl_init(argc, argv);
	MUST(sigprocmask(SIG_BLOCK, &own, NULL));
	MUST(sigprocmask(SIG_BLOCK, &other, NULL));
	MUST0(pthread_create(&thread, NULL, receive, NULL));
	WAIT_FOR(thread_tid, "the thread does not start");

	real = start(CLOCK_REALTIME, 1000, 36, event);
	CHECK(sigtimedwait(&own, &info, &limit) > 0 && info.si_overrun == 36, "%d missed, not 36", info.si_overrun);
	event = (struct sigevent){ .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2, .sigev_notify_thread_id = thread_tid };
	period = wl_now_ms(CLOCK_MONOTONIC) / 1000 / 10;
	mono = start(CLOCK_MONOTONIC, period, 7, event);
	WAIT_FOR(thread_overrun == 7, "%d missed, not 7", thread_overrun);
	/* What waits from others stays in its place. */
	MUST(sigqueue(getpid(), SIGRTMIN + 1, value));

	wl_ready();
	if (wl_lose)
		MUST(timer_settime(real, 0, &anew, NULL));
	check(real, 36, 1000, "real time");
	check(mono, 7, period, "to a thread");
	CHECK(sigtimedwait(&own, &info, &limit) > 0 && info.si_code == SI_QUEUE && info.si_value.sival_int == 77, "another signal waits");
	MUST(sigpending(&pending));
	CHECK(!sigismember(&pending, SIGRTMIN + 1), "a signal came that nobody sent");
	stop = true;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
