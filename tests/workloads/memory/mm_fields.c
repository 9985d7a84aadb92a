/* What the kernel keeps about a process image: arguments, environment, auxiliary vector, program, limits of its parts. */
#include "workload.h"

static char before[4][16384], now[16384];
static size_t lengths[4];
static const char *const files[] = { "/proc/self/cmdline", "/proc/self/environ", "/proc/self/auxv" };

/* Fields of /proc/self/stat from "start_code" on that describe the image: 26-28 and 45-51 of proc(5). */
static void layout(char *text, size_t size)
{
	static char stat[2048];
	char *field;
	size_t used = 0;

	wl_read_file("/proc/self/stat", stat, sizeof(stat));
	field = strtok(strrchr(stat, ')') + 2, " ");
	for (int number = 3; field; number++, field = strtok(NULL, " \n"))
		if ((number >= 26 && number <= 28) || (number >= 45 && number <= 51))
			used += snprintf(text + used, size - used, "%d:%s ", number, field);
}

int main(int argc, char **argv)
{
	char exe[2][PATH_MAX] = { "" };

	wl_init(argc, argv);
	setenv("IGNORED_BY_PROC", "1", 1);
	/* As programs do that rename themselves in ps: this changes what cmdline shows. */
	memset(argv[0], 'X', strlen(argv[0]));
	for (int i = 0; i < 3; i++)
		lengths[i] = wl_read_file(files[i], before[i], sizeof(before[i]));
	layout(before[3], sizeof(before[3]));
	MUST(readlink("/proc/self/exe", exe[0], PATH_MAX - 1));

	wl_ready();
	if (wl_lose)
		argv[0][0] = 'Y';
	for (int i = 0; i < 3; i++) {
		size_t length = wl_read_file(files[i], now, sizeof(now));

		CHECK(length == lengths[i] && memcmp(now, before[i], length) == 0, "%s had %zu bytes, has %zu other bytes", files[i], lengths[i], length);
	}
	layout(now, sizeof(now));
	CHECK(strcmp(now, before[3]) == 0, "layout was '%s', is '%s'", before[3], now);
	MUST(readlink("/proc/self/exe", exe[1], PATH_MAX - 1));
	CHECK(strcmp(exe[0], exe[1]) == 0, "the program was %s, is %s", exe[0], exe[1]);
	wl_ok();
}
