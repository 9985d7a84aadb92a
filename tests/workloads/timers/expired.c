/* An interval timer that has expired while its signal is blocked: it stands at zero, and goes on when the signal is taken. */
#include <sys/time.h>

#include "workload.h"

static volatile int fired;

static void handler(int signal)
{
	(void)signal;
	fired++;
}

int main(int argc, char **argv)
{
	struct itimerval timer = { { 0, 20000 }, { 0, 1000 } };
	sigset_t alarm, waiting;

	wl_init(argc, argv);
	signal(SIGALRM, handler);
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	MUST(sigprocmask(SIG_BLOCK, &alarm, NULL));
	MUST(setitimer(ITIMER_REAL, &timer, NULL));
	do {
		wl_sleep_ms(1);
		MUST(sigpending(&waiting));
	} while (!sigismember(&waiting, SIGALRM));

	wl_ready();
	if (wl_lose) {
		memset(&timer, 0, sizeof(timer));
		MUST(setitimer(ITIMER_REAL, &timer, NULL));
	}
	MUST(sigpending(&waiting));
	CHECK(sigismember(&waiting, SIGALRM), "the signal does not wait any more");
	MUST(getitimer(ITIMER_REAL, &timer));
	CHECK(timer.it_interval.tv_usec >= 19000 && timer.it_interval.tv_usec <= 21000, "interval %ld us", (long)timer.it_interval.tv_usec);
	MUST(sigprocmask(SIG_UNBLOCK, &alarm, NULL));
	CHECK(fired == 1, "the signal came %d times", fired);
	for (long until = wl_now_ms(CLOCK_MONOTONIC) + 5000; fired < 4 && wl_now_ms(CLOCK_MONOTONIC) < until;)
		;
	CHECK(fired >= 4, "the timer does not fire any more");
	wl_ok();
}
