/* Pages that begin with their number: their order is what this is about. */
#ifndef NUMBERED_PAGES_H
#define NUMBERED_PAGES_H

#include "workload.h"

static inline void fill(uint8_t *map, long from, long to, unsigned seed)
{
	for (long at = from; at < to; at += 4096) {
		wl_fill(map + at, 64, seed);
		*(long *)(map + at + 64) = at;
	}
}

static inline void check(const uint8_t *map, long from, long to, unsigned seed)
{
	for (long at = from; at < to; at += 4096) {
		CHECK(wl_differs(map + at, 64, seed) < 0, "the page at %ld differs", at);
		CHECK(*(const long *)(map + at + 64) == at, "the page at %ld is that of %ld", at, *(const long *)(map + at + 64));
	}
}

#endif
