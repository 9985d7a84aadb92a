/* A MAP_GROWSDOWN mapping, and the stack itself, grow on after the restore. */
#include "workload.h"

static __attribute__((noinline)) int deep(int depth)
{
	volatile char frame[4096];

	frame[0] = 1;
	return depth == 0 ? 0 : deep(depth - 1) + frame[0];
}

int main(int argc, char **argv)
{
	volatile uint8_t *top;
	uint8_t *space;

	wl_init(argc, argv);
	/* Free address space below, wider than the kernel's stack guard gap of 256 pages. */
	space = MUST(mmap(NULL, 1024 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(munmap(space, 1024 * 4096));
	top = MUST(mmap(space + 1000 * 4096, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
	wl_fill((uint8_t *)top, 8 * 4096, 9);
	/* Grows by one page before the checkpoint already. */
	top[-4000] = 11;

	wl_ready();
	if (wl_lose) {
		MUST(munmap((uint8_t *)top - 4096, 4096));
		MUST(mmap((uint8_t *)top - 4096, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	}
	CHECK(wl_differs((uint8_t *)top, 8 * 4096, 9) < 0, "contents differ");
	CHECK(wl_has_vmflag((uint8_t *)top, "gd"), "the mapping is no longer one that grows");
	CHECK(top[-4000] == 11, "the page that it grew by is lost");
	for (int page = 2; page <= 40; page++)
		top[-4096 * page] = page;
	CHECK(top[-4096 * 40] == 40, "it does not grow on");
	CHECK(deep(500) == 500, "the stack does not grow on");
	wl_ok();
}
