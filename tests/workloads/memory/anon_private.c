/* Private anonymous mappings: contents, holes that were never touched, and each mapping's protection. */
#include "workload.h"

#define SIZE (64 * 4096)

static const int protections[] = { PROT_READ | PROT_WRITE, PROT_READ, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC };

int main(int argc, char **argv)
{
	char before[4][256];
	uint8_t *maps[4], *sparse;

	wl_init(argc, argv);
	for (int i = 0; i < 4; i++) {
		/* Every second page of the address space between them stays unmapped. */
		maps[i] = MUST(mmap(NULL, SIZE + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		MUST(munmap(maps[i] + SIZE, 4096));
		wl_fill(maps[i], SIZE, i);
		MUST(mprotect(maps[i], SIZE, protections[i]));
	}
	sparse = MUST(mmap(NULL, 1 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	for (size_t at = 0; at < 1 << 30; at += 64 << 20)
		wl_fill(sparse + at, 4096, at >> 20);
	for (int i = 0; i < 4; i++)
		snprintf(before[i], sizeof(before[i]), "%s", wl_mapping(maps[i], NULL));

	wl_ready();
	if (wl_lose)
		sparse[512 << 20] ^= 1;

	for (int i = 0; i < 4; i++) {
		CHECK(wl_differs(maps[i], SIZE, i) < 0, "mapping %d differs at %zd", i, wl_differs(maps[i], SIZE, i));
		CHECK(strcmp(before[i], wl_mapping(maps[i], NULL)) == 0, "mapping was '%s', is '%s'", before[i], wl_mapping(maps[i], NULL));
		CHECK(wl_faults((char *)maps[i] + SIZE, false), "the page behind mapping %d is there now", i);
	}
	CHECK(wl_faults((char *)maps[1], true), "a read-only mapping can be written");
	for (size_t at = 0; at < 1 << 30; at += 64 << 20) {
		CHECK(wl_differs(sparse + at, 4096, at >> 20) < 0, "sparse mapping differs at %zu MiB", at >> 20);
		CHECK(sparse[at + 8192] == 0, "an untouched page is not zero");
	}
	wl_ok();
}
