// peer: no, CRIU 4.2 does not carry time namespaces within the tree
// differs: process timens_offsets, the clocks go on from where they were, whatever those of the host did meanwhile
// differs: process ns.time_for_children, of who has made a namespace for its next child alone only the child has it again
/* Clocks of its own, in which a child is: they go on from where they were. */
#include <sched.h>

#include "workload.h"

#define AHEAD 100000
#define BOOT_AHEAD 200000

static double now(clockid_t clock)
{
	struct timespec time;

	MUST(clock_gettime(clock, &time));
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void check(const char *name, double before, clockid_t clock)
{
	double passed = now(clock) - before;

	CHECK(passed >= 0 && passed < 60, "the %s clock went on by %f s", name, passed);
}

int main(int argc, char **argv)
{
	double monotonic, boot, real, own = now(CLOCK_MONOTONIC);
	struct timespec until;
	char text[64];
	pid_t child;
	int fd;

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWTIME));
	fd = MUST(open("/proc/self/timens_offsets", O_WRONLY));
	snprintf(text, sizeof(text), "monotonic %d 5\nboottime %d 7\n", AHEAD, BOOT_AHEAD);
	MUST(write(fd, text, strlen(text)));
	close(fd);
	child = wl_fork();
	if (child == 0) {
		monotonic = now(CLOCK_MONOTONIC);
		boot = now(CLOCK_BOOTTIME);
		CHECK(monotonic >= own + AHEAD, "the clock is not its own: %f", monotonic);
		real = now(CLOCK_REALTIME);
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			monotonic += 100;
		check("monotonic", monotonic, CLOCK_MONOTONIC);
		check("boot", boot, CLOCK_BOOTTIME);
		check("real", real, CLOCK_REALTIME);
		MUST(clock_gettime(CLOCK_MONOTONIC, &until));
		until.tv_nsec += 1000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		MUST0(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL));
		_exit(0);
	}
	wl_ready();
	check("own monotonic", own, CLOCK_MONOTONIC);
	wl_join(child);
	wl_ok();
}
