// peer: no, CRIU 4.2 loses the count
// differs: thread signals.queued_for_process, the signal carries the count that the timer cannot get back
/* A timer on processor time whose signal waits: the signal tells how often it has expired. */
#include "overrun.h"

static long used_ms(void)
{
	return wl_now_ms(CLOCK_PROCESS_CPUTIME_ID);
}

int main(int argc, char **argv)
{
	struct timespec limit = { 0 };
	struct overrun overrun;
	siginfo_t info;
	int missed;

	wl_init(argc, argv);
	overrun = overrun_begin(CLOCK_PROCESS_CPUTIME_ID, 10);
	for (long until = used_ms() + 300; used_ms() < until;)
		;

	wl_ready();
	missed = overrun_taken(&overrun);
	CHECK(missed >= 28, "%d expirations are counted, at least 28 were missed", missed);
	CHECK(missed <= 60, "%d expirations are counted, some 30 were missed", missed);
	/* It goes on. */
	while (sigtimedwait(&overrun.signal, &info, &limit) > 0)
		;
	limit.tv_nsec = 1;
	for (long until = used_ms() + 1000; used_ms() < until;)
		if (sigtimedwait(&overrun.signal, &info, &limit) > 0)
			wl_ok();
	wl_fail("the timer does not fire any more");
}
