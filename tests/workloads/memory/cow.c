/* Copy-on-write between parent, child and grandchild: each its own values, and a later write stays its writer's. */
#include "workload.h"

#define PAGES 64

static void verify(const uint8_t *map, int generation)
{
	/* Generation g has written the pages whose number is divisible by g + 2, on top of its forebears'. */
	for (int page = 0; page < PAGES; page++) {
		int writer = 0;

		for (int g = 1; g <= generation; g++)
			if (page % (g + 2) == 0)
				writer = g;
		CHECK(wl_differs(map + page * 4096, 4096, writer * 1000 + page) < 0, "generation %d: page %d is not that of generation %d",
		      generation, page, writer);
	}
}

static void write_own(uint8_t *map, int generation)
{
	for (int page = 0; page < PAGES; page++)
		if (page % (generation + 2) == 0)
			wl_fill(map + page * 4096, 4096, generation * 1000 + page);
}

int main(int argc, char **argv)
{
	uint8_t *map;
	int generation = 0;
	pid_t child = 0;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int page = 0; page < PAGES; page++)
		wl_fill(map + page * 4096, 4096, page);
	while (generation < 2) {
		child = wl_fork();
		if (child != 0)
			break;
		write_own(map, ++generation);
	}
	if (generation == 0) {
		wl_ready();
	} else {
		wl_child_ready();
		wl_wait();
	}
	if (wl_lose && generation == 2)
		map[5 * 4096] ^= 1;
	verify(map, generation);
	/* Overwrite everything, before the children look again. */
	if (generation == 0)
		memset(map, 0xee, PAGES * 4096);
	wl_sleep_ms(20);
	if (generation > 0)
		verify(map, generation);
	if (child)
		wl_join(child);
	if (generation > 0)
		_exit(0);
	wl_ok();
}
