// peer: no, CRIU 4.2 needs a free descriptor
/* Much memory in a process that can open one thing more (its report), so no pipe. */
#include "workload.h"
#include <sys/resource.h>

#define SIZE (20l << 20)

int main(int argc, char **argv)
{
	struct rlimit limit;
	uint8_t *map;
	int last;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (long at = 0; at < SIZE; at += 4096)
		wl_fill(map + at, 64, at >> 12);
	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	last = MUST(dup(1));
	MUST(close(last));
	limit.rlim_cur = last + 1;
	MUST(setrlimit(RLIMIT_NOFILE, &limit));

	wl_ready();
	if (wl_lose)
		map[SIZE - 4096] ^= 1;
	for (long at = 0; at < SIZE; at += 4096)
		CHECK(wl_differs(map + at, 64, at >> 12) < 0, "the page at %ld differs", at);
	CHECK(dup(1) == last, "another number is free");
	CHECK(dup(1) < 0 && errno == EMFILE, "two things more can be opened");
	MUST(close(last));
	wl_ok();
}
