// peer: no, it takes what is written meanwhile for old
// differs: mapping content.*, its threads never rest
/* Huge pages that are being written all the time: private and shared ones of hugetlbfs, and transparent ones, of which some
 * are given back again and again. Of each two copies, kept in step by a thread, whatever the moment of the freeze. */
#include <pthread.h>

#include "huge_pages.h"

#define COPY (2 * HUGE)
#define WORDS (COPY / sizeof(uint64_t))

enum { PRIVATE, SHARED, TRANSPARENT, KINDS };

static struct {
	volatile uint64_t *first, *second;
	volatile uint64_t turn;
} kinds[KINDS];
static volatile bool stop;

static void *write_on(void *argument)
{
	uintptr_t kind = (uintptr_t)argument;
	volatile uint64_t *first = kinds[kind].first, *second = kinds[kind].second;

	while (!stop) {
		uint64_t turn = ++kinds[kind].turn, place = turn * 0x9E3779B97F4A7C15ull % WORDS;

		if (kind == TRANSPARENT && turn % 50000 == 0) {
			size_t from = turn / 50000 % 2 * HUGE / sizeof(uint64_t);

			MUST(madvise((void *)(first + from), HUGE, MADV_DONTNEED));
			MUST(madvise((void *)(second + from), HUGE, MADV_DONTNEED));
		}
		first[place] = turn;
		second[place] = turn;
		/* Pages that rest for a while are protected when they are written to next. */
		if (turn % 64 == 0)
			wl_sleep_ms(1);
	}
	return NULL;
}

static volatile uint64_t *map_huge(int flags)
{
	return MUST(mmap(NULL, COPY, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
}

static volatile uint64_t *map_transparent(void)
{
	uintptr_t room = (uintptr_t)MUST(mmap(NULL, COPY + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	void *start = (void *)((room + HUGE - 1) / HUGE * HUGE);

	MUST(madvise(start, COPY, MADV_HUGEPAGE));
	return start;
}

int main(int argc, char **argv)
{
	pthread_t threads[KINDS];

	wl_init(argc, argv);
	provide_pages();
	for (uintptr_t kind = 0; kind < KINDS; kind++) {
		int flags = kind == PRIVATE ? MAP_PRIVATE : MAP_SHARED;

		kinds[kind].first = kind == TRANSPARENT ? map_transparent() : map_huge(flags);
		kinds[kind].second = kind == TRANSPARENT ? map_transparent() : map_huge(flags);
		MUST0(pthread_create(&threads[kind], NULL, write_on, (void *)kind));
	}
	wl_sleep_ms(30);

	wl_ready();
	for (int kind = 0; kind < KINDS; kind++) {
		uint64_t before = kinds[kind].turn;

		WAIT_FOR(kinds[kind].turn > before, "writer %d does not go on", kind);
	}
	stop = true;
	for (int kind = 0; kind < KINDS; kind++)
		MUST0(pthread_join(threads[kind], NULL));
	if (wl_lose)
		kinds[PRIVATE].first[12345] ^= 1;
	for (int kind = 0; kind < KINDS; kind++)
		for (size_t at = 0; at < WORDS; at++)
			CHECK(kinds[kind].first[at] == kinds[kind].second[at], "kind %d: the copies differ at %zu: %lu and %lu", kind, at,
			      kinds[kind].first[at], kinds[kind].second[at]);
	wl_ok();
}
