// differs: mapping content.*, its handlers count
/* The three interval timers: what remains, the interval, and that they fire on. */
#include <sys/time.h>

#include "workload.h"

static volatile int fired[3];
static const int signals[] = { SIGALRM, SIGVTALRM, SIGPROF };

static void handler(int signal)
{
	for (int i = 0; i < 3; i++)
		fired[i] += signal == signals[i];
}

static long ms(struct timeval value)
{
	return value.tv_sec * 1000 + value.tv_usec / 1000;
}

int main(int argc, char **argv)
{
	struct itimerval timer, now;
	long asked_at, passed;
	pid_t child;

	wl_init(argc, argv);
	for (int i = 0; i < 3; i++)
		signal(signals[i], handler);
	child = wl_fork();
	if (child == 0) {
		/* Far away: nothing fires, all can be read. */
		for (int i = 0; i < 3; i++) {
			timer = (struct itimerval){ { 1000 + i, 500 }, { 100 + i, 0 } };
			MUST(setitimer(i, &timer, NULL));
		}
		asked_at = wl_now_ms(CLOCK_MONOTONIC);
		wl_child_ready();
		wl_wait();
		for (int i = 0; i < 3; i++) {
			if (wl_lose && i == 1)
				memset(&timer, 0, sizeof(timer)), setitimer(i, &timer, NULL);
			MUST(getitimer(i, &now));
			passed = wl_now_ms(CLOCK_MONOTONIC) - asked_at;
			CHECK(now.it_interval.tv_sec == 1000 + i && now.it_interval.tv_usec == 500, "timer %d: interval %ld.%06ld", i,
			      (long)now.it_interval.tv_sec, (long)now.it_interval.tv_usec);
			CHECK(ms(now.it_value) <= (100 + i) * 1000 + 20 && ms(now.it_value) >= (100 + i) * 1000 - passed - 1000,
			      "timer %d: %ld ms remain of %d, %ld have passed", i, ms(now.it_value), (100 + i) * 1000, passed);
		}
		_exit(0);
	}
	timer = (struct itimerval){ { 0, 20000 }, { 0, 20000 } };
	for (int i = 0; i < 3; i++)
		MUST(setitimer(i, &timer, NULL));

	wl_ready();
	for (int i = 0; i < 3; i++) {
		int before = fired[i];

		for (long until = wl_now_ms(CLOCK_MONOTONIC) + 5000; fired[i] < before + 3 && wl_now_ms(CLOCK_MONOTONIC) < until;)
			;
		CHECK(fired[i] >= before + 3, "timer %d does not fire any more", i);
		MUST(getitimer(i, &now));
		CHECK(now.it_interval.tv_usec >= 19000 && now.it_interval.tv_usec <= 21000, "timer %d: interval %ld us", i, (long)now.it_interval.tv_usec);
	}
	memset(&timer, 0, sizeof(timer));
	for (int i = 0; i < 3; i++)
		MUST(setitimer(i, &timer, NULL));
	wl_join(child);
	wl_ok();
}
