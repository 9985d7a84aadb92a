/* Pages that a parent and its child have not written since the fork are the same physical pages, before and after. */
#include "frame.h"

#define PAGES 64

static int shared_pages(pid_t child, const uint8_t *map)
{
	int shared = 0;

	for (int page = 0; page < PAGES; page++) {
		uint64_t mine = frame(getpid(), map + page * 4096);

		shared += mine != 0 && mine == frame(child, map + page * 4096);
	}
	return shared;
}

int main(int argc, char **argv)
{
	uint8_t *map;
	int before;
	pid_t child;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(map, PAGES * 4096, MADV_NOHUGEPAGE));
	wl_fill(map, PAGES * 4096, 5);
	child = wl_fork();
	if (child == 0) {
		wl_fill(map, 10 * 4096, 6);
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("looked"), F_OK) == 0, "the parent did not look");
		CHECK(wl_differs(map, 10 * 4096, 6) < 0, "the child's own pages differ");
		_exit(0);
	}
	before = shared_pages(child, map);
	CHECK(before == PAGES - 10, "%d pages are shared before the checkpoint", before);

	wl_ready();
	if (wl_lose)
		wl_fill(map + 20 * 4096, 4096, 5);
	CHECK(shared_pages(child, map) == before, "%d pages were shared, %d are", before, shared_pages(child, map));
	MUST(close(MUST(creat(wl_path("looked"), 0600))));
	wl_join(child);
	CHECK(wl_differs(map, 10 * 4096, 5) < 0, "the parent's pages differ");
	wl_ok();
}
