/* Lightweight guard regions (MADV_GUARD_INSTALL, Linux 6.13) inside an ordinary mapping. */
#include "workload.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#define PAGES 16

int main(int argc, char **argv)
{
	uint8_t *map;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int page = 0; page < PAGES; page++)
		wl_fill(map + page * 4096, 4096, page);
	/* One at the start, two in the middle, one at the end. */
	MUST(madvise(map, 4096, MADV_GUARD_INSTALL));
	MUST(madvise(map + 7 * 4096, 2 * 4096, MADV_GUARD_INSTALL));
	MUST(madvise(map + (PAGES - 1) * 4096, 4096, MADV_GUARD_INSTALL));

	wl_ready();
	if (wl_lose)
		MUST(madvise(map + 7 * 4096, 4096, MADV_GUARD_REMOVE));
	for (int page = 0; page < PAGES; page++) {
		bool guarded = page == 0 || page == 7 || page == 8 || page == PAGES - 1;

		CHECK(wl_faults((char *)map + page * 4096, false) == guarded, "page %d is%s guarded", page, guarded ? " not" : "");
		if (!guarded)
			CHECK(wl_differs(map + page * 4096, 4096, page) < 0, "page %d differs", page);
	}
	MUST(madvise(map, PAGES * 4096, MADV_GUARD_REMOVE));
	CHECK(map[7 * 4096] == 0 && map[0] == 0, "a page whose guard was removed is not empty");
	wl_ok();
}
