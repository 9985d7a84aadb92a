// peer: no, a signal that comes first uses up the request to stop, and CRIU 4.2 waits for it in vain
// differs: thread signals.queued*, who of them has expired first changes from one moment to the next
// differs: thread call, it is in its handler at times
// differs: mapping content*, frames of the handler come and go on the stack
/* Timers that fire all the time: whoever asks the program to stop comes in between two signals, or in the midst of one. */
#include <sched.h>

#include "workload.h"

enum { TIMERS = 8, INTERVAL_NS = 100000 };

static volatile unsigned long fired;

static void handler(int signal)
{
	(void)signal;
	fired++;
}

/* Without a sleep: one that is interrupted more often than every 50 us, its slack, never ends (kernel/time/hrtimer.c). */
static bool fires_on(void)
{
	unsigned long before = fired;
	time_t end = time(NULL) + 20;

	while (fired < before + 100 && time(NULL) < end)
		sched_yield();
	return fired >= before + 100;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
	struct itimerspec timer = { { 0, INTERVAL_NS }, { 0, INTERVAL_NS } };
	timer_t timers[TIMERS];

	wl_init(argc, argv);
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	for (int i = 0; i < TIMERS; i++) {
		MUST(timer_create(CLOCK_MONOTONIC, &event, &timers[i]));
		MUST(timer_settime(timers[i], 0, &timer, NULL));
	}

	wl_ready();
	for (int i = 0; i < TIMERS; i++) {
		struct itimerspec now;

		if (wl_lose)
			MUST(timer_delete(timers[TIMERS - 1 - i])), wl_lose = false;
		CHECK(timer_gettime(timers[i], &now) == 0, "timer %d is gone", i);
		CHECK(now.it_interval.tv_nsec == INTERVAL_NS, "timer %d has another interval", i);
		CHECK(fires_on(), "the timers do not fire any more");
	}
	for (int i = 0; i < TIMERS; i++)
		MUST(timer_delete(timers[i]));
	wl_ok();
}
