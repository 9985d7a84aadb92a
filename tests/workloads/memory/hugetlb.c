/* Pages of hugetlbfs: a private and a shared mapping of 2 MiB pages. Raises vm.nr_hugepages where too few are free. */
#include "huge_pages.h"

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
