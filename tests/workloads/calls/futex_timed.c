// peer: no, CRIU 4.2 lets the interruption show (EINTR)
// differs: mapping *, the call ends meanwhile: its time is measured by the workload itself
// differs: thread *, the call ends meanwhile: its time is measured by the workload itself
// differs: process *, the call ends meanwhile: its time is measured by the workload itself
/* A futex wait with a relative time limit that runs out. */
#include <linux/futex.h>

#include "blocked.h"

static long call(void)
{
	static uint32_t word = 5;
	struct timespec limit = { 1, 200000000 };

	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 5, &limit, NULL, 0);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	blocked_main((struct blocked_call){ .number = SYS_futex, .call = call, .result = -1, .error = ETIMEDOUT, .duration_ms = 1200 });
}
