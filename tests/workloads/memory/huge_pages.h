/* Huge pages of hugetlbfs, which somebody has to provide. */
#include "../workload.h"

#define HUGE (2ul << 20)

WL_UNUSED static void provide_pages(void)
{
	static char text[8192];
	char *line, number[32];
	int fd;
	long total, unused;

	wl_read_file("/proc/meminfo", text, sizeof(text));
	line = strstr(text, "HugePages_Total:");
	total = line ? atol(line + 16) : 0;
	line = strstr(text, "HugePages_Free:");
	unused = line ? atol(line + 15) : 0;
	if (unused >= 12)
		return;
	fd = MUST(open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC));
	snprintf(number, sizeof(number), "%ld", total + 20);
	MUST(write(fd, number, strlen(number)));
	close(fd);
}
