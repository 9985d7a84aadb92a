/* The heap that brk(2) moves: its end, its contents, and that it moves on from there. */
#include "workload.h"

#define SIZE (50 * 4096 + 100)

int main(int argc, char **argv)
{
	uint8_t *start, *end, *more;

	wl_init(argc, argv);
	start = MUST(sbrk(SIZE));
	wl_fill(start, SIZE, 3);
	end = MUST(sbrk(0));

	wl_ready();
	if (wl_lose)
		MUST(sbrk(-4096));
	CHECK(sbrk(0) == end, "the end of the heap was %p, is %p", end, sbrk(0));
	CHECK(wl_differs(start, SIZE, 3) < 0, "contents differ at %zd", wl_differs(start, SIZE, 3));
	CHECK(strstr(wl_mapping(start, NULL), "[heap]"), "the heap is called '%s'", wl_mapping(start, NULL));
	more = MUST(sbrk(1 << 20));
	CHECK(more == end, "the heap does not go on where it ended");
	more[(1 << 20) - 1] = 1;
	MUST(brk(start));
	CHECK(sbrk(0) == start, "the heap does not shrink");
	wl_ok();
}
