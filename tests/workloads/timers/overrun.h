/* A POSIX timer whose signal is blocked, and is not taken while the timer expires again and again. */
#ifndef OVERRUN_H
#define OVERRUN_H

#include "workload.h"

struct overrun {
	timer_t id;
	/* The timer's signal alone. */
	sigset_t signal;
};

static struct overrun overrun_begin(clockid_t clock, long period_ms)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 5 };
	struct timespec period = { 0, period_ms * 1000000 };
	struct itimerspec timer = { period, period };
	struct overrun overrun;

	sigemptyset(&overrun.signal);
	sigaddset(&overrun.signal, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &overrun.signal, NULL));
	MUST(timer_create(clock, &event, &overrun.id));
	MUST(timer_settime(overrun.id, 0, &timer, NULL));
	return overrun;
}

/* Takes the signal, which must wait; how many expirations it tells of. */
static int overrun_taken(struct overrun *overrun)
{
	struct timespec none = { 0 };
	siginfo_t info;

	/* With it goes the count. */
	if (wl_lose)
		CHECK(sigtimedwait(&overrun->signal, &info, &none) > 0, "no signal waits");
	memset(&info, 0, sizeof(info));
	CHECK(sigtimedwait(&overrun->signal, &info, &(struct timespec){ wl_lose ? 2 : 0, 0 }) == SIGRTMIN + 3 && info.si_code == SI_TIMER && info.si_value.sival_int == 5,
	      "the timer's signal does not wait");
	return info.si_overrun;
}

#endif
