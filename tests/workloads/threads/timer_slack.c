// peer: no, CRIU 4.2 loses it
/* The timer slack of threads. */
#include <sys/prctl.h>

#include "scheduling.h"

static void set(int number)
{
	static const long values[] = { 1000, 123456, 7654321 };

	MUST(prctl(PR_SET_TIMERSLACK, values[number]));
}

static void describe(char *text, size_t size)
{
	snprintf(text, size, "%d ns", prctl(PR_GET_TIMERSLACK));
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
