// differs: mapping content.*, a thread of the idle class comes to rest when the others let it
/* The scheduling policies of threads that need no real-time budget: batch with a nice value, idle, reset on fork. */
#include <sched.h>
#include <sys/resource.h>

#include "scheduling.h"

static void set(int number)
{
	static const int policies[] = { SCHED_OTHER, SCHED_BATCH | SCHED_RESET_ON_FORK, SCHED_IDLE };
	struct sched_param none = { 0 };

	MUST(sched_setscheduler(0, policies[number], &none));
	if (number == 1)
		MUST(setpriority(PRIO_PROCESS, wl_gettid(), 3));
}

static void describe(char *text, size_t size)
{
	struct sched_param parameters;

	MUST(sched_getparam(0, &parameters));
	snprintf(text, size, "policy %#x priority %d nice %d", sched_getscheduler(0), parameters.sched_priority,
		 getpriority(PRIO_PROCESS, wl_gettid()));
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
