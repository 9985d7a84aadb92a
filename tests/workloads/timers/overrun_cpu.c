// peer: no, CRIU 4.2 loses the count
// differs: thread signals.queued_for_process, the signal carries the count that the timer cannot get back
/* A timer on processor time whose signal waits: the signal tells how often it has expired. */
#include "workload.h"

static long used_ms(void)
{
	return wl_now_ms(CLOCK_PROCESS_CPUTIME_ID);
}

int main(int argc, char **argv)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 5 };
	struct itimerspec timer = { { 0, 10000000 }, { 0, 10000000 } };
	struct timespec limit = { 2, 0 };
	siginfo_t info;
	sigset_t own;
	timer_t id;

	wl_init(argc, argv);
	sigemptyset(&own);
	sigaddset(&own, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &own, NULL));
	MUST(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &id));
	MUST(timer_settime(id, 0, &timer, NULL));
	for (long until = used_ms() + 300; used_ms() < until;)
		;

	wl_ready();
	if (wl_lose)
		CHECK(sigtimedwait(&own, &info, &limit) > 0, "no signal waits");
	memset(&info, 0, sizeof(info));
	limit.tv_sec = 0;
	CHECK(sigtimedwait(&own, &info, &limit) == SIGRTMIN + 3 && info.si_code == SI_TIMER && info.si_value.sival_int == 5, "the timer's signal does not wait");
	CHECK(info.si_overrun >= 28, "%d expirations are counted, at least 28 were missed", info.si_overrun);
	CHECK(info.si_overrun <= 60, "%d expirations are counted, some 30 were missed", info.si_overrun);
	/* It goes on. */
	while (sigtimedwait(&own, &info, &limit) > 0)
		;
	limit.tv_nsec = 1;
	for (long until = used_ms() + 1000; used_ms() < until;)
		if (sigtimedwait(&own, &info, &limit) > 0)
			wl_ok();
	wl_fail("the timer does not fire any more");
}
