// peer: no, CRIU 4.2 loses it
/* The I/O priorities of threads: real time and best effort. */
#include <linux/ioprio.h>

#include "scheduling.h"

static void set(int number)
{
	static const int values[] = { IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 0), IOPRIO_PRIO_VALUE(IOPRIO_CLASS_RT, 3),
				      IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 6) };

	MUST(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, values[number]));
}

static void describe(char *text, size_t size)
{
	long value = MUST(syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));

	snprintf(text, size, "class %ld level %ld", IOPRIO_PRIO_CLASS(value), IOPRIO_PRIO_DATA(value));
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
