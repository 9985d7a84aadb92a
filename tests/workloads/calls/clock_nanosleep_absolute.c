// differs: mapping *, the call ends meanwhile: its time is measured by the workload itself
// differs: thread *, the call ends meanwhile: its time is measured by the workload itself
// differs: process *, the call ends meanwhile: its time is measured by the workload itself
/* clock_nanosleep until a moment of the monotonic clock. */
#include "blocked.h"

static long call(void)
{
	struct timespec until;

	MUST(clock_gettime(CLOCK_MONOTONIC, &until));
	until.tv_sec += 1;
	until.tv_nsec += 200000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	blocked_main((struct blocked_call){ .number = SYS_clock_nanosleep, .call = call, .result = 0, .duration_ms = 1200 });
}
