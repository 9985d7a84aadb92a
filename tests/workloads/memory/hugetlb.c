/* Pages of hugetlbfs: a private and a shared mapping of 2 MiB pages. Raises vm.nr_hugepages where too few are free. */
#include "workload.h"

#define HUGE (2ul << 20)

static void provide_pages(void)
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

int main(int argc, char **argv)
{
	uint8_t *private, *shared;
	pid_t child;

	wl_init(argc, argv);
	provide_pages();
	private = MUST(mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
	shared = MUST(mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
	wl_fill(private, HUGE, 1);
	wl_fill(shared + HUGE, HUGE, 2);
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(*(volatile uint8_t *)shared == 42, "the child does not share huge pages with its parent");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		private[HUGE - 1] ^= 1;
	CHECK(wl_has_vmflag(private, "ht") && wl_has_vmflag(shared, "ht"), "the mappings are no longer of huge pages");
	CHECK(wl_differs(private, HUGE, 1) < 0, "private huge pages differ at %zd", wl_differs(private, HUGE, 1));
	CHECK(wl_differs(shared + HUGE, HUGE, 2) < 0, "shared huge pages differ at %zd", wl_differs(shared + HUGE, HUGE, 2));
	shared[0] = 42;
	wl_join(child);
	wl_ok();
}
