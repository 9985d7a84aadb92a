/* Data behind PROT_NONE and behind read-only protection, and reserved space that was never usable. */
#include "workload.h"

#define SIZE (16 * 4096)

int main(int argc, char **argv)
{
	uint8_t *hidden, *reserved, *fixed;
	char before[256];

	wl_init(argc, argv);
	hidden = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(hidden, SIZE, 6);
	MUST(mprotect(hidden, SIZE, PROT_NONE));
	fixed = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(fixed, SIZE, 7);
	MUST(mprotect(fixed, SIZE, PROT_READ));
	/* As language runtimes reserve their heaps. */
	reserved = MUST(mmap(NULL, 64ul << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	snprintf(before, sizeof(before), "%s", wl_mapping(reserved, NULL));

	wl_ready();
	CHECK(wl_faults((char *)hidden, false), "PROT_NONE memory can be read");
	CHECK(wl_faults((char *)fixed, true), "read-only memory can be written");
	CHECK(strcmp(before, wl_mapping(reserved, NULL)) == 0, "the reserve was '%s', is '%s'", before, wl_mapping(reserved, NULL));
	MUST(mprotect(hidden, SIZE, PROT_READ | PROT_WRITE));
	MUST(mprotect(fixed, SIZE, PROT_READ | PROT_WRITE));
	if (wl_lose)
		hidden[SIZE - 1] ^= 1;
	CHECK(wl_differs(hidden, SIZE, 6) < 0, "data behind PROT_NONE differs at %zd", wl_differs(hidden, SIZE, 6));
	CHECK(wl_differs(fixed, SIZE, 7) < 0, "read-only data differs at %zd", wl_differs(fixed, SIZE, 7));
	MUST(mprotect(reserved + (32ul << 30), 4096, PROT_READ | PROT_WRITE));
	reserved[32ul << 30] = 1;
	wl_ok();
}
