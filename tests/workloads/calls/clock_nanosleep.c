// peer: no, CRIU 4.2 lets the interruption show (EINTR)
// differs: mapping *, the call ends meanwhile: its time is measured by the workload itself
// differs: thread *, the call ends meanwhile: its time is measured by the workload itself
// differs: process *, the call ends meanwhile: its time is measured by the workload itself
/* clock_nanosleep on another clock (CLOCK_BOOTTIME), relative. */
#include "blocked.h"

static long call(void)
{
	struct timespec time = { 1, 200000000 };

	return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &time, NULL);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	blocked_main((struct blocked_call){ .number = SYS_clock_nanosleep, .call = call, .result = 0, .duration_ms = 1200 });
}
