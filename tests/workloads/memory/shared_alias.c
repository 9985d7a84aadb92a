/* One shared anonymous segment at two places of one process, with different protections and offsets. */
#include "workload.h"

#define SIZE (16 * 4096)

int main(int argc, char **argv)
{
	uint8_t *first, *second;

	wl_init(argc, argv);
	first = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	wl_fill(first, SIZE, 3);
	/* An old size of zero makes a second mapping of the same pages: see mremap(2). */
	second = MUST(mremap(first + 4 * 4096, 0, 8 * 4096, MREMAP_MAYMOVE));
	MUST(mprotect(second, 8 * 4096, PROT_READ));

	wl_ready();
	if (wl_lose)
		MUST(mmap(second, 8 * 4096, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	CHECK(wl_differs(first, SIZE, 3) < 0, "the segment differs at %zd", wl_differs(first, SIZE, 3));
	CHECK(memcmp(first + 4 * 4096, second, 8 * 4096) == 0, "the second mapping shows something else");
	first[5 * 4096] ^= 0xff;
	CHECK(second[4096] == first[5 * 4096], "a write through one mapping is not seen through the other");
	CHECK(wl_faults((char *)second, true), "the read-only mapping can be written");
	wl_ok();
}
