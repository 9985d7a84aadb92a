/* Shared anonymous segments that only some processes of a family still map, and in part. */
#include "workload.h"

#define PAGES 8

int main(int argc, char **argv)
{
	uint8_t *one, *two;
	pid_t child, grandchild;

	wl_init(argc, argv);
	one = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	two = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	wl_fill(one, PAGES * 4096, 1);
	wl_fill(two, PAGES * 4096, 2);
	child = wl_fork();
	if (child == 0) {
		grandchild = wl_fork();
		if (grandchild == 0) {
			/* Holds the second half of `one` alone. */
			MUST(munmap(one, PAGES / 2 * 4096));
			MUST(munmap(two, PAGES * 4096));
			wl_child_ready();
			wl_wait();
			WAIT_FOR(*(volatile uint8_t *)(one + 7 * 4096) == 99, "the grandchild does not share with its grandparent");
			one[6 * 4096] = 66;
			_exit(0);
		}
		/* The child lets go of `one` altogether. */
		MUST(munmap(one, PAGES * 4096));
		wl_child_ready();
		wl_wait();
		WAIT_FOR(*(volatile uint8_t *)two == 88, "the child does not share with its parent");
		wl_join(grandchild);
		two[4096] = 55;
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		one[100] ^= 1;
	CHECK(wl_differs(one, PAGES * 4096, 1) < 0, "first segment differs at %zd", wl_differs(one, PAGES * 4096, 1));
	CHECK(wl_differs(two, PAGES * 4096, 2) < 0, "second segment differs at %zd", wl_differs(two, PAGES * 4096, 2));
	one[7 * 4096] = 99;
	two[0] = 88;
	wl_join(child);
	CHECK(one[6 * 4096] == 66 && two[4096] == 55, "what the family wrote is not seen: %d %d", one[6 * 4096], two[4096]);
	wl_ok();
}
