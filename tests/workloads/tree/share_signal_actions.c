// peer: no, CRIU 4.2 refuses shared memory descriptors, and this needs one
/* A child that shares memory and the table of signal actions (CLONE_SIGHAND). */
#include "sharer.h"

static int child(void)
{
	sharer_set_action();
	sharer_turn = 2;
	return 0;
}

int main(int argc, char **argv)
{
	pid_t pid;

	wl_init(argc, argv);
	pid = sharer_begin(CLONE_SIGHAND, child);

	wl_ready();
	sharer_let();
	if (wl_lose)
		signal(SIGUSR2, SIG_DFL);
	sharer_check_action();
	wl_join(pid);
	wl_ok();
}
