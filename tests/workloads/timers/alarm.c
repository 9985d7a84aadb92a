/* alarm(2): one shot that has not fired, and one that is long over. */
#include "workload.h"

static volatile int fired;

static void handler(int signal)
{
	(void)signal;
	fired++;
}

int main(int argc, char **argv)
{
	unsigned left;
	pid_t child;

	wl_init(argc, argv);
	signal(SIGALRM, handler);
	child = wl_fork();
	if (child == 0) {
		/* Longer than a round trip takes on a busy machine: what it has counted is compared before and after. */
		alarm(5);
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			alarm(0);
		for (int turn = 0; turn < 4000 && !fired; turn++)
			wl_sleep_ms(2);
		CHECK(fired == 1, "the alarm of five seconds came %d times", fired);
		_exit(0);
	}
	alarm(500);
	wl_ready();
	left = alarm(0);
	CHECK(left > 400 && left <= 500, "%u seconds are left of 500", left);
	wl_join(child);
	wl_ok();
}
