/* Locked memory: mlock, mlock2 on fault, a lock on part of a mapping, and the count in /proc. */
#include "workload.h"

static long locked_kb(void)
{
	static char text[8192];
	char *line;

	wl_read_file("/proc/self/status", text, sizeof(text));
	line = strstr(text, "VmLck:");
	return line ? atol(line + 6) : -1;
}

int main(int argc, char **argv)
{
	uint8_t *whole, *part, *fault;
	long before;

	wl_init(argc, argv);
	whole = MUST(mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0));
	part = MUST(mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fault = MUST(mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(mlock(part + 4 * 4096, 4 * 4096));
	MUST(mlock2(fault, 16 * 4096, MLOCK_ONFAULT));
	wl_fill(whole, 16 * 4096, 1);
	wl_fill(part, 16 * 4096, 2);
	before = locked_kb();

	wl_ready();
	if (wl_lose)
		MUST(munlock(part, 16 * 4096));
	CHECK(wl_differs(whole, 16 * 4096, 1) < 0 && wl_differs(part, 16 * 4096, 2) < 0, "locked memory differs");
	CHECK(wl_has_vmflag(whole, "lo"), "MAP_LOCKED memory is not locked");
	CHECK(!wl_has_vmflag(part, "lo") && wl_has_vmflag(part + 4 * 4096, "lo") && !wl_has_vmflag(part + 8 * 4096, "lo"),
	      "a lock on part of a mapping is lost or spread");
	CHECK(wl_has_vmflag(fault, "lo"), "memory locked on fault is not locked");
	CHECK(locked_kb() == before, "VmLck was %ld kB, is %ld kB", before, locked_kb());
	wl_ok();
}
