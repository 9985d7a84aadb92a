// peer: no, CRIU 4.2 makes a full lock of it
/* MLOCK_ONFAULT: the mapping is locked, and pages that were never touched still take no memory. */
#include "workload.h"

static long resident_kb(const void *address)
{
	const char *line = wl_mapping(address, "Rss:");

	return *line ? atol(line + 4) : -1;
}

int main(int argc, char **argv)
{
	uint8_t *map;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, 256 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(map, 256 * 4096, MADV_NOHUGEPAGE));
	MUST(mlock2(map, 256 * 4096, MLOCK_ONFAULT));
	wl_fill(map, 3 * 4096, 1);

	wl_ready();
	if (wl_lose)
		MUST(mlock(map, 256 * 4096));
	CHECK(wl_has_vmflag(map, "lo"), "the mapping is not locked");
	CHECK(wl_differs(map, 3 * 4096, 1) < 0, "contents differ");
	CHECK(resident_kb(map) == 12, "%ld kB of it are resident, 12 kB were touched", resident_kb(map));
	wl_ok();
}
