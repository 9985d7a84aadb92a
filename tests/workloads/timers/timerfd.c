// peer: no, CRIU 4.2 loses expirations that were not read
/* timerfd of each clock: armed, relative and absolute, disarmed, with expirations that nobody has read. */
#include <sys/timerfd.h>

#include "workload.h"

static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME };

static long ms(struct timespec value)
{
	return value.tv_sec * 1000 + value.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	struct itimerspec timer = { { 7, 89 }, { 200, 0 } }, now;
	int far[3], unread, absolute, idle, once, shared;
	long began, passed;
	uint64_t ticks;
	pid_t child;

	wl_init(argc, argv);
	for (int i = 0; i < 3; i++) {
		far[i] = MUST(timerfd_create(clocks[i], TFD_NONBLOCK));
		MUST(timerfd_settime(far[i], 0, &timer, NULL));
	}
	unread = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	began = wl_now_ms(CLOCK_MONOTONIC);
	MUST(timerfd_settime(unread, 0, &(struct itimerspec){ { 0, 10000000 }, { 0, 10000000 } }, NULL));
	absolute = MUST(timerfd_create(CLOCK_REALTIME, 0));
	MUST(timerfd_settime(absolute, TFD_TIMER_ABSTIME, &(struct itimerspec){ { 0, 0 }, { time(NULL) + 1000, 0 } }, NULL));
	idle = MUST(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
	once = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	MUST(timerfd_settime(once, 0, &(struct itimerspec){ { 0, 0 }, { 0, 1 } }, NULL));
	shared = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(timerfd_gettime(shared, &now) == 0 && now.it_interval.tv_sec == 33, "the child does not share the timer");
		_exit(0);
	}
	wl_sleep_ms(100);

	wl_ready();
	if (wl_lose)
		MUST(timerfd_settime(far[2], 0, &(struct itimerspec){ 0 }, NULL));
	passed = wl_now_ms(CLOCK_MONOTONIC) - began;
	for (int i = 0; i < 3; i++) {
		MUST(timerfd_gettime(far[i], &now));
		CHECK(now.it_interval.tv_sec == 7 && now.it_interval.tv_nsec == 89, "clock %d: interval %ld.%09ld", clocks[i], (long)now.it_interval.tv_sec,
		      now.it_interval.tv_nsec);
		CHECK(ms(now.it_value) <= 200020 && ms(now.it_value) >= 200000 - passed - 1000, "clock %d: %ld ms remain of 200000, %ld have passed", clocks[i],
		      ms(now.it_value), passed);
		CHECK(read(far[i], &ticks, 8) < 0 && errno == EAGAIN, "clock %d: expired already, or it blocks", clocks[i]);
	}
	MUST(read(unread, &ticks, 8));
	passed = wl_now_ms(CLOCK_MONOTONIC) - began;
	CHECK(ticks >= 9 && ticks <= (uint64_t)passed / 10 + 2, "%lu expirations in %ld ms of 10 ms each", ticks, passed);
	MUST(timerfd_gettime(absolute, &now));
	CHECK(ms(now.it_value) <= 1000020 && ms(now.it_value) > 900000, "the absolute timer: %ld ms remain", ms(now.it_value));
	MUST(timerfd_gettime(idle, &now));
	CHECK(ms(now.it_value) == 0 && read(idle, &ticks, 8) < 0 && errno == EAGAIN, "the idle timer is not idle");
	CHECK(read(once, &ticks, 8) == 8 && ticks == 1, "the timer that expired once, unread, gives %lu", ticks);
	CHECK(fcntl(unread, F_GETFD) == FD_CLOEXEC && fcntl(idle, F_GETFD) == 0, "close-on-exec is lost or invented");
	MUST(timerfd_settime(shared, 0, &(struct itimerspec){ { 33, 0 }, { 33, 0 } }, NULL));
	wl_join(child);
	wl_ok();
}
