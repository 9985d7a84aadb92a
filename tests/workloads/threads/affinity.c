// peer: no, CRIU 4.2 loses it
/* The processors that threads may run on. */
#include <sched.h>

#include "scheduling.h"

static void set(int number)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(number == 1 ? 0 : sysconf(_SC_NPROCESSORS_ONLN) - 1, &set);
	if (number == 0)
		CPU_SET(0, &set);
	MUST(sched_setaffinity(0, sizeof(set), &set));
}

static void describe(char *text, size_t size)
{
	unsigned long mask[16] = { 0 };

	MUST(syscall(SYS_sched_getaffinity, 0, sizeof(mask), mask));
	snprintf(text, size, "%#lx", mask[0]);
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
