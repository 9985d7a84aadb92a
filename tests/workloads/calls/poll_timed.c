// peer: no, CRIU 4.2 lets the interruption show (EINTR)
// differs: mapping *, the call ends meanwhile: its time is measured by the workload itself
// differs: thread *, the call ends meanwhile: its time is measured by the workload itself
// differs: process *, the call ends meanwhile: its time is measured by the workload itself
/* poll whose time runs out. */
#include <poll.h>

#include "blocked.h"

static long call(void)
{
	int ends[2];
	struct pollfd watched = { .events = POLLIN };

	MUST(pipe(ends));
	watched.fd = ends[0];
	return syscall(SYS_poll, &watched, 1, 1200);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	blocked_main((struct blocked_call){ .number = SYS_poll, .call = call, .result = 0, .duration_ms = 1200 });
}
