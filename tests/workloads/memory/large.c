/* Much memory in two processes, more than is copied page by page: some of it unreadable, some of it shared since the
 * fork, and holes in between. */
#include "frame.h"
#include "numbered_pages.h"

#define MIB (1 << 20)
#define SIZE (72l * MIB)
#define HIDDEN (20l * MIB)
#define HOLE (30l * MIB)
#define SAMPLE (40l * MIB)

static void check_all(uint8_t *map, unsigned seed)
{
	CHECK(wl_faults((char *)map + HIDDEN, false), "the hidden page can be read");
	MUST(mprotect(map + HIDDEN, MIB, PROT_READ));
	check(map, 0, MIB, seed);
	check(map, MIB, HOLE, 1);
	for (long at = HOLE; at < HOLE + MIB; at += 8192)
		check(map, at, at + 4096, 1);
	check(map, HOLE + MIB, SIZE, 1);
}

int main(int argc, char **argv)
{
	uint8_t *map;
	pid_t child;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(map, SIZE, MADV_NOHUGEPAGE));
	fill(map, 0, SIZE, 1);
	for (long at = HOLE; at < HOLE + MIB; at += 8192)
		MUST(madvise(map + at + 4096, 4096, MADV_DONTNEED));
	MUST(mprotect(map + HIDDEN, MIB, PROT_NONE));
	child = wl_fork();
	if (child == 0) {
		fill(map, 0, MIB, 2);
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("looked"), F_OK) == 0, "the parent did not look");
		check_all(map, 2);
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		map[SIZE - 4096] ^= 1;
	CHECK(frame(getpid(), map + SAMPLE) == frame(child, map + SAMPLE), "a page is not shared any more");
	MUST(close(MUST(creat(wl_path("looked"), 0600))));
	wl_join(child);
	check_all(map, 1);
	wl_ok();
}
