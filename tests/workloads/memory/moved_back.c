// differs: mapping *, it is moved all the time
// differs: thread *, its threads never rest
// differs: process maps, they change all the time
/* Memory of which parts are moved away, and back some time later, by mremap(2), so that mappings come apart and merge again;
 * and that is written to all the time. Every page holds what was written to it last. */
#include <pthread.h>

#include "workload.h"

#define PAGE 4096ul
#define PAGES 4096ul
#define BLOCK_PAGES 16ul
#define BLOCK (BLOCK_PAGES * PAGE)

static uint8_t *memory, *elsewhere;
static uint64_t last[PAGES];
static bool is_away[PAGES / BLOCK_PAGES];
static volatile bool stop;
static volatile uint64_t steps;
static uint64_t state = 88172645463325252ull;

static uint64_t draw(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static volatile uint64_t *at(size_t page)
{
	return (uint64_t *)((is_away[page / BLOCK_PAGES] ? elsewhere : memory) + page * PAGE);
}

static void look(size_t page)
{
	uint64_t found = *at(page);

	CHECK(found == last[page], "page %zu: %#lx in the place of %#lx", page, found, last[page]);
}

static void put(size_t page)
{
	*at(page) = ++last[page];
}

static void move(size_t block)
{
	uint8_t *here = memory + block * BLOCK, *there = elsewhere + block * BLOCK;

	if (is_away[block])
		MUST(mremap(there, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, here));
	else
		MUST(mremap(here, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, there));
	is_away[block] = !is_away[block];
}

static void *change(void *unused)
{
	while (!stop) {
		move(draw(PAGES / BLOCK_PAGES));
		for (int i = 0; i < 20; i++) {
			size_t page = draw(PAGES);

			look(page);
			put(page);
		}
		steps++;
		wl_sleep_ms(1);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	uint64_t before;

	wl_init(argc, argv);
	memory = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE));
	elsewhere = MUST(mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < PAGES; page++)
		put(page);
	MUST0(pthread_create(&thread, NULL, change, NULL));
	WAIT_FOR(steps > 10, "nothing is moved");

	wl_ready();
	before = steps;
	WAIT_FOR(steps > before + 10, "nothing is moved any more");
	stop = true;
	MUST0(pthread_join(thread, NULL));
	if (wl_lose)
		*at(7) ^= 1;
	for (size_t page = 0; page < PAGES; page++)
		look(page);
	wl_ok();
}
