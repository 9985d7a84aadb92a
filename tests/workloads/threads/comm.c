/* The names of threads, also odd ones. */
#include <sys/prctl.h>

#include "scheduling.h"

static void set(int number)
{
	static const char *const names[] = { "other", "with ) and (", "fifteen letters" };

	MUST(prctl(PR_SET_NAME, names[number]));
}

static void describe(char *text, size_t size)
{
	(void)size;
	MUST(prctl(PR_GET_NAME, text));
}

int main(int argc, char **argv)
{
	own_main(argc, argv, (struct own_setting){ set, describe });
}
