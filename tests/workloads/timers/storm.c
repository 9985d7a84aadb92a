/* Timers that fire all the time: whoever asks the program to stop comes in between two signals, or in the midst of one. */
#include "workload.h"

enum { TIMERS = 8, INTERVAL_NS = 100000 };

static volatile unsigned long fired;

static void handler(int signal)
{
	(void)signal;
	fired++;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
	struct itimerspec timer = { { 0, INTERVAL_NS }, { 0, INTERVAL_NS } };
	timer_t timers[TIMERS];
	unsigned long before;

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
		before = fired;
		WAIT_FOR(fired > before + 100, "the timers do not fire any more");
	}
	for (int i = 0; i < TIMERS; i++)
		MUST(timer_delete(timers[i]));
	wl_ok();
}
