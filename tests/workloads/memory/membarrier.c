/* A process that has registered for membarrier(2), and its child that has not. */
#include <linux/membarrier.h>

#include "workload.h"

static int barrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0);
}

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork_waiting();
	if (child == 0) {
		if (wl_lose)
			MUST(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));
		CHECK(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) < 0 && errno == EPERM, "a process that has not registered may use it");
		_exit(0);
	}
	MUST(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));
	MUST(barrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED));
	wl_ready();
	CHECK(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0, "the registration is lost: %s", strerror(errno));
	CHECK(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) < 0, "a registration out of nowhere");
	wl_join(child);
	wl_ok();
}
