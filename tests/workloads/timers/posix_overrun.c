// peer: no, CRIU 4.2 loses the count
/* A POSIX timer whose signal is blocked: the expirations that nobody took are counted, across the checkpoint. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 5 };
	struct itimerspec timer = { { 0, 2000000 }, { 0, 2000000 } };
	struct timespec limit = { 2, 0 };
	long began, passed;
	siginfo_t info;
	sigset_t own;
	timer_t id;

	wl_init(argc, argv);
	sigemptyset(&own);
	sigaddset(&own, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &own, NULL));
	MUST(timer_create(CLOCK_MONOTONIC, &event, &id));
	began = wl_now_ms(CLOCK_MONOTONIC);
	MUST(timer_settime(id, 0, &timer, NULL));
	/* 250 expirations are missed before the checkpoint. */
	wl_sleep_ms(500);

	wl_ready();
	if (wl_lose)
		CHECK(sigtimedwait(&own, &info, &limit) > 0, "no signal is pending");
	CHECK(sigtimedwait(&own, &info, &limit) == SIGRTMIN + 3 && info.si_code == SI_TIMER && info.si_value.sival_int == 5, "the timer's signal is not pending");
	passed = wl_now_ms(CLOCK_MONOTONIC) - began;
	CHECK(info.si_overrun >= 245, "%d expirations are counted after %ld ms, at least 245 were missed", info.si_overrun, passed);
	CHECK(info.si_overrun <= passed / 2 + 2, "%d expirations are counted after %ld ms of 2 ms each", info.si_overrun, passed);
	CHECK(timer_getoverrun(id) == info.si_overrun, "timer_getoverrun says %d, the signal said %d", timer_getoverrun(id), info.si_overrun);
	wl_ok();
}
