/* The nice values of threads. */
#include <sys/resource.h>

#include "scheduling.h"

static void set(int number)
{
	static const int values[] = { 0, -5, 12 };

	MUST(setpriority(PRIO_PROCESS, wl_gettid(), values[number]));
}

static void describe(char *text, size_t size)
{
	snprintf(text, size, "%d", getpriority(PRIO_PROCESS, wl_gettid()));
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
