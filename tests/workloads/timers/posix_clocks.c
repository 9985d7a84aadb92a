/* POSIX timers of every clock, far away: what remains, their intervals, and their numbers, which have gaps. */
#include "workload.h"

static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_TAI };
#define COUNT ((int)(sizeof(clocks) / sizeof(clocks[0])))

static long ms(struct timespec value)
{
	return value.tv_sec * 1000 + value.tv_nsec / 1000000;
}

/* The bare call: the kernel's own number of the timer. */
static int create(clockid_t clock, int value)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = value };
	int id;

	MUST(syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

int main(int argc, char **argv)
{
	struct itimerspec timer, now;
	int ids[COUNT], spare[COUNT];
	long asked_at, passed;

	wl_init(argc, argv);
	for (int i = 0; i < COUNT; i++) {
		spare[i] = create(CLOCK_MONOTONIC, 0);
		ids[i] = create(clocks[i], i);
		timer = (struct itimerspec){ { 50 + i, 123 }, { 300 + i, 0 } };
		/* The last is disarmed. */
		if (i < COUNT - 1)
			MUST(syscall(SYS_timer_settime, ids[i], 0, &timer, NULL));
	}
	for (int i = 0; i < COUNT; i++)
		MUST(syscall(SYS_timer_delete, spare[i]));
	asked_at = wl_now_ms(CLOCK_MONOTONIC);

	wl_ready();
	if (wl_lose)
		MUST(syscall(SYS_timer_delete, ids[2]));
	passed = wl_now_ms(CLOCK_MONOTONIC) - asked_at;
	for (int i = 0; i < COUNT; i++) {
		CHECK(syscall(SYS_timer_gettime, ids[i], &now) == 0, "timer %d (number %d) is gone", i, ids[i]);
		if (i == COUNT - 1) {
			CHECK(ms(now.it_value) == 0, "the disarmed timer runs: %ld ms", ms(now.it_value));
			continue;
		}
		CHECK(now.it_interval.tv_sec == 50 + i && now.it_interval.tv_nsec == 123, "timer %d: interval %ld.%09ld", i, (long)now.it_interval.tv_sec,
		      now.it_interval.tv_nsec);
		CHECK(ms(now.it_value) <= (300 + i) * 1000 + 20 && ms(now.it_value) >= (300 + i) * 1000 - passed - 1000,
		      "timer %d: %ld ms remain of %d, %ld have passed", i, ms(now.it_value), (300 + i) * 1000, passed);
	}
	for (int i = 0; i < COUNT; i++)
		CHECK(syscall(SYS_timer_gettime, spare[i], &now) < 0 && errno == EINVAL, "a deleted timer is there again");
	wl_ok();
}
