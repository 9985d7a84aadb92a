/* Droppable memory: mapped as it was, its contents intact or dropped, and wiped in a child. */
#include "workload.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif
#define SIZE (8 * 4096)

int main(int argc, char **argv)
{
	uint8_t *map;
	pid_t child;

	wl_init(argc, argv);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED && errno == EINVAL) {
		/* Before Linux 6.11 there is none: nothing to lose. */
		wl_ready();
		CHECK(!wl_lose, "lost nothing");
		wl_ok();
	}
	MUST(map);
	wl_fill(map, SIZE, 3);

	wl_ready();
	if (wl_lose)
		MUST(mmap(map, SIZE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	CHECK(wl_has_vmflag(map, "dp") && wl_has_vmflag(map, "wf") && wl_has_vmflag(map, "dd"), "the mapping is another: %s",
	      wl_mapping(map, "VmFlags"));
	for (int page = 0; page < SIZE; page += 4096)
		CHECK(map[page] == wl_byte(3, page) || map[page] == 0, "page %d holds what was never written", page / 4096);
	wl_fill(map, SIZE, 4);
	child = MUST(fork());
	if (child == 0) {
		CHECK(map[0] == 0 && map[SIZE - 1] == 0, "a child has the contents");
		_exit(0);
	}
	wl_join(child);
	wl_ok();
}
