// differs: thread registers.*, it never stands still
/* A process that makes and collects children all the time: whatever the moment of the freeze, none is lost. */
#include "workload.h"

static volatile long *made;

static void fork_on(void)
{
	while (!wl_told_to_go()) {
		pid_t child = MUST(fork());
		int status;

		if (child == 0)
			_exit(made[0] % 100);
		CHECK(waitpid(child, &status, 0) == child, "a child is lost");
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == made[0] % 100, "child %ld ended with %#x", made[0], status);
		made[0]++;
	}
	if (wl_lose)
		CHECK(waitpid(-1, NULL, 0) > 0, "there is no child left to collect");
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t child;
	long before;

	wl_init(argc, argv);
	made = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	child = wl_fork();
	if (child == 0) {
		wl_child_ready();
		fork_on();
	}
	WAIT_FOR(made[0] > 10, "no children are made");
	before = made[0];
	wl_ready();
	wl_join(child);
	CHECK(made[0] >= before, "the count went back");
	wl_ok();
}
