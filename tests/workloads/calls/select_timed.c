// differs: mapping *, the call ends meanwhile: its time is measured by the workload itself
// differs: thread *, the call ends meanwhile: its time is measured by the workload itself
// differs: process *, the call ends meanwhile: its time is measured by the workload itself
/* select whose time runs out: the kernel keeps the rest of it in the program's own timeval. */
#include <sys/select.h>

#include "blocked.h"

static long call(void)
{
	struct timeval limit = { 1, 200000 };

	return syscall(SYS_select, 0, NULL, NULL, NULL, &limit);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	blocked_main((struct blocked_call){ .number = SYS_select, .call = call, .result = 0, .duration_ms = 1200 });
}
