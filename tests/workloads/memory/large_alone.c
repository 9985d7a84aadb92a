/* Much memory in a process that is alone, more than it writes down at a time: some of it unreadable, with holes and pages of
 * zeros in between. */
#include "numbered_pages.h"

#define MIB (1l << 20)
#define SIZE (72l * MIB)
#define HIDDEN (20l * MIB)
#define HOLE (30l * MIB)
#define ZEROS (50l * MIB)

static void check_zeros(const uint8_t *map)
{
	for (long at = 0; at < MIB; at += 8)
		CHECK(*(const long *)(map + at) == 0, "what was zero is not at %ld", at);
}

int main(int argc, char **argv)
{
	uint8_t *map;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(map, SIZE, MADV_NOHUGEPAGE));
	fill(map, 0, SIZE, 1);
	MUST(madvise(map + HOLE, MIB, MADV_DONTNEED));
	memset(map + ZEROS, 0, MIB);
	/* A page that only begins with zeros is none of zeros. */
	memset(map + ZEROS + MIB, 0, 64);
	MUST(mprotect(map + HIDDEN, MIB, PROT_NONE));

	wl_ready();
	if (wl_lose)
		map[SIZE - 4096] ^= 1;
	CHECK(wl_faults((char *)map + HIDDEN, false), "the hidden page can be read");
	MUST(mprotect(map + HIDDEN, MIB, PROT_READ));
	check(map, 0, HOLE, 1);
	check_zeros(map + HOLE);
	check(map, HOLE + MIB, ZEROS, 1);
	check_zeros(map + ZEROS);
	CHECK(*(long *)(map + ZEROS + MIB + 64) == ZEROS + MIB, "the page behind the zeros is lost");
	check(map, ZEROS + MIB + 4096, SIZE, 1);
	wl_ok();
}
