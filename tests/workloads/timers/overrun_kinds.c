// peer: no, CRIU 4.2 loses the count
/*
 * Timers whose signals wait: to a thread, of one shot, in the midst of others of the same number, and set anew since,
 * which makes the signal void (Linux 6.13).
 */
#include <pthread.h>

#include "workload.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define TO_THREAD (SIGRTMIN + 1)
#define ONCE (SIGRTMIN + 2)
#define AMIDST (SIGRTMIN + 3)
#define STALE (SIGRTMIN + 4)
#define ALIVE 2000000

static volatile pid_t thread_tid;
static volatile bool take, taken;
static siginfo_t of_thread;
static sigset_t all;

/* Whether a signal waits; which. */
static bool next(int signal, siginfo_t *info)
{
	struct timespec limit = { 0, 0 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	memset(info, 0, sizeof(*info));
	return sigtimedwait(&set, info, &limit) == signal;
}

static void *receive(void *unused)
{
	(void)unused;
	thread_tid = wl_gettid();
	while (!take)
		wl_nap();
	next(TO_THREAD, &of_thread);
	taken = true;
	return NULL;
}

static timer_t start(clockid_t clock, int signal, long nanoseconds, long interval)
{
	struct sigevent event = { .sigev_notify = signal == TO_THREAD ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = signal };
	struct itimerspec timer = { { 0, interval }, { 0, nanoseconds } };
	timer_t id;

	if (signal == TO_THREAD)
		event.sigev_notify_thread_id = thread_tid;
	event.sigev_value.sival_int = signal;
	MUST(timer_create(clock, &event, &id));
	MUST(timer_settime(id, 0, &timer, NULL));
	return id;
}

/* A timer that has expired and was then set to expire in a hundred seconds. */
static timer_t make_stale(void)
{
	struct itimerspec later = { { 0, 0 }, { 100, 0 } };
	timer_t id = start(CLOCK_MONOTONIC, STALE, 1000000, 0);

	wl_sleep_ms(20);
	MUST(timer_settime(id, 0, &later, NULL));
	return id;
}

static void check_amidst(long began)
{
	siginfo_t info;
	long passed;

	CHECK(next(AMIDST, &info) && info.si_code == SI_QUEUE && info.si_value.sival_int == 1, "first comes code %d, value %d", info.si_code, info.si_value.sival_int);
	CHECK(next(AMIDST, &info) && info.si_code == SI_TIMER && info.si_value.sival_int == AMIDST, "second comes code %d, value %d", info.si_code, info.si_value.sival_int);
	passed = wl_now_ms(CLOCK_MONOTONIC) - began;
	CHECK(info.si_overrun >= 95 && info.si_overrun <= passed / 2 + 2, "%d overruns in %ld ms", info.si_overrun, passed);
	CHECK(next(AMIDST, &info) && info.si_code == SI_QUEUE && info.si_value.sival_int == 3, "third comes code %d, value %d", info.si_code, info.si_value.sival_int);
}

int main(int argc, char **argv)
{
	struct itimerspec left;
	pthread_t thread;
	siginfo_t info;
	timer_t once, stale;
	bool drops;
	long began, passed;

	wl_init(argc, argv);
	sigemptyset(&all);
	for (int signal = TO_THREAD; signal <= STALE; signal++)
		sigaddset(&all, signal);
	MUST(sigprocmask(SIG_BLOCK, &all, NULL));
	MUST0(pthread_create(&thread, NULL, receive, NULL));
	WAIT_FOR(thread_tid, "the thread does not start");
	MUST(timer_delete(make_stale()));
	stale = make_stale();
	drops = !next(STALE, &info);
	if (drops) {
		MUST(timer_delete(stale));
		stale = make_stale();
	}

	began = wl_now_ms(CLOCK_MONOTONIC);
	MUST(sigqueue(getpid(), AMIDST, (union sigval){ .sival_int = 1 }));
	start(CLOCK_MONOTONIC, AMIDST, ALIVE, ALIVE);
	start(CLOCK_BOOTTIME, TO_THREAD, ALIVE, ALIVE);
	once = start(CLOCK_REALTIME, ONCE, ALIVE, 0);
	wl_sleep_ms(200);
	MUST(sigqueue(getpid(), AMIDST, (union sigval){ .sival_int = 3 }));

	wl_ready();
	if (wl_lose)
		next(AMIDST, &info);
	check_amidst(began);
	take = true;
	WAIT_FOR(taken, "the thread has gone");
	passed = wl_now_ms(CLOCK_MONOTONIC) - began;
	CHECK(of_thread.si_signo == TO_THREAD && of_thread.si_code == SI_TIMER && of_thread.si_value.sival_int == TO_THREAD, "the thread has no signal");
	CHECK(of_thread.si_overrun >= 95 && of_thread.si_overrun <= passed / 2 + 2, "the thread was told of %d overruns in %ld ms", of_thread.si_overrun, passed);
	MUST(timer_gettime(once, &left));
	CHECK(left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0, "the timer of one shot runs");
	CHECK(next(ONCE, &info) && info.si_code == SI_TIMER && info.si_value.sival_int == ONCE && info.si_overrun == 0, "the signal of one shot does not wait");
	CHECK(!next(ONCE, &info), "the signal of one shot came twice");
	CHECK(!drops || !next(STALE, &info), "a void signal came");
	MUST(timer_gettime(stale, &left));
	CHECK(left.it_value.tv_sec > 30, "%ld s are left of 100", (long)left.it_value.tv_sec);
	wl_ok();
}
