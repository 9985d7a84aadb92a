// processor: ospke
// gap: keys are not carried yet, neither of mappings nor those in use
// peer: no, CRIU 4.2 loses the keys of mappings
/* Memory protection keys, where the processor has them: the keys of mappings, the rights of a thread, the keys in use. */
#include "workload.h"

int main(int argc, char **argv)
{
	int readable, closed, next;
	uint8_t *maps[2];

	wl_init(argc, argv);
	readable = pkey_alloc(0, PKEY_DISABLE_WRITE);
	if (readable < 0) {
		/* A processor without them has none to lose. */
		wl_ready();
		CHECK(!wl_lose && pkey_alloc(0, 0) < 0, "a protection key out of nowhere");
		wl_ok();
	}
	closed = MUST(pkey_alloc(0, 0));
	for (int i = 0; i < 2; i++) {
		maps[i] = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		wl_fill(maps[i], 8192, i);
		MUST(pkey_mprotect(maps[i], 8192, PROT_READ | PROT_WRITE, i ? closed : readable));
	}
	MUST(pkey_set(closed, PKEY_DISABLE_ACCESS));

	wl_ready();
	if (wl_lose)
		MUST(pkey_mprotect(maps[1], 8192, PROT_READ | PROT_WRITE, 0));
	CHECK(atoi(wl_mapping(maps[0], "ProtectionKey:") + 14) == readable, "the first mapping: %s", wl_mapping(maps[0], "ProtectionKey:"));
	CHECK(atoi(wl_mapping(maps[1], "ProtectionKey:") + 14) == closed, "the second mapping: %s", wl_mapping(maps[1], "ProtectionKey:"));
	CHECK(pkey_get(readable) == PKEY_DISABLE_WRITE && pkey_get(closed) == PKEY_DISABLE_ACCESS, "rights are %d and %d", pkey_get(readable),
	      pkey_get(closed));
	CHECK(wl_faults((char *)maps[0], true) && !wl_faults((char *)maps[0], false), "the read-only key does not protect");
	CHECK(wl_faults((char *)maps[1], false), "the closed key does not protect");
	MUST(pkey_set(closed, 0));
	CHECK(wl_differs(maps[0], 8192, 0) < 0 && wl_differs(maps[1], 8192, 1) < 0, "contents differ");
	next = MUST(pkey_alloc(0, 0));
	CHECK(next != readable && next != closed, "a key in use is given out again: %d", next);
	wl_ok();
}
