// differs: mapping *, it is made, moved and removed all the time
// differs: thread *, its threads never rest
// differs: process maps, they change all the time
/* Memory that is written to all the time, and whose mappings change all the time: every page holds what was written to it
 * last, whatever the moment at which it is looked at, copied or frozen. Each step looks at what it finds before it changes it. */
#include <pthread.h>

#include "workload.h"

#define PAGE 4096
#define AREAS 48
#define MOST_PAGES 64
#define FILE_PAGES 64
#define FIXED_PAGES 2048

enum kind { NONE, ANONYMOUS, OF_FILE };

/* What must be in an area. Anonymous memory begins with zeros, memory of the file with the number of its page. */
struct area {
	enum kind kind;
	volatile char *memory;
	size_t pages;
	uint64_t last[MOST_PAGES];
	bool is_readonly;
};

static struct area areas[AREAS];
static volatile uint64_t *fixed, fixed_last[FIXED_PAGES];
static volatile bool stop;
static volatile uint64_t steps, writes;
static int file;

static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t fresh(const struct area *area, size_t page)
{
	return area->kind == OF_FILE ? 0xF00000 + page : 0;
}

/* Three places of a page, so that one that is torn is found. */
static void look(volatile char *page, uint64_t expected, const char *what, size_t number)
{
	for (size_t at = 0; at <= 4088; at += 2044 / 8 * 8) {
		uint64_t found = *(volatile uint64_t *)(page + at);

		CHECK(found == expected, "%s, page %zu at %zu: %#lx in the place of %#lx", what, number, at, found, expected);
	}
}

static void put(volatile char *page, uint64_t value)
{
	for (size_t at = 0; at <= 4088; at += 2044 / 8 * 8)
		*(volatile uint64_t *)(page + at) = value;
}

static void look_at(const struct area *area)
{
	for (size_t page = 0; area->kind != NONE && page < area->pages; page++)
		look(area->memory + page * PAGE, area->last[page], area->kind == OF_FILE ? "private memory of a file" : "memory", page);
}

static void make(struct area *area, uint64_t chance)
{
	bool of_file = chance % 4 == 0;

	area->pages = 1 + chance / 8 % MOST_PAGES;
	area->memory = MUST(mmap(NULL, area->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | (of_file ? 0 : MAP_ANONYMOUS),
				 of_file ? file : -1, 0));
	area->kind = of_file ? OF_FILE : ANONYMOUS;
	area->is_readonly = false;
	for (size_t page = 0; page < area->pages; page++)
		area->last[page] = fresh(area, page);
}

/* One change of an area, by chance. */
static void step(struct area *area, uint64_t chance)
{
	size_t page = area->pages ? chance / 16 % area->pages : 0;

	if (area->kind == NONE) {
		make(area, chance / 16);
		return;
	}
	look(area->memory + page * PAGE, area->last[page], "memory", page);
	switch (chance % 16) {
	case 0:
		look_at(area);
		MUST0(munmap((void *)area->memory, area->pages * PAGE));
		area->kind = NONE;
		break;
	case 1: {
		/* It moves, since there is no room for it where it is. */
		void *room = MUST(mmap(NULL, area->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

		area->memory = MUST(mremap((void *)area->memory, area->pages * PAGE, area->pages * PAGE,
					   MREMAP_MAYMOVE | MREMAP_FIXED, room));
		break;
	}
	case 2:
		MUST0(madvise((void *)(area->memory + page * PAGE), (area->pages - page) * PAGE, MADV_DONTNEED));
		for (size_t gone = page; gone < area->pages; gone++)
			area->last[gone] = fresh(area, gone);
		break;
	case 3:
		if (area->pages < MOST_PAGES / 2 && area->kind == ANONYMOUS) {
			size_t more = 2 * area->pages;

			area->memory = MUST(mremap((void *)area->memory, area->pages * PAGE, more * PAGE, MREMAP_MAYMOVE));
			for (size_t new = area->pages; new < more; new++)
				area->last[new] = 0;
			area->pages = more;
		}
		break;
	case 4:
		area->is_readonly = !area->is_readonly;
		MUST0(mprotect((void *)area->memory, area->pages * PAGE, PROT_READ | (area->is_readonly ? 0 : PROT_WRITE)));
		break;
	case 5:
		if (area->pages > 1) {
			MUST0(munmap((void *)(area->memory + (area->pages - 1) * PAGE), PAGE));
			area->pages--;
		}
		break;
	default:
		if (!area->is_readonly) {
			put(area->memory + page * PAGE, chance);
			area->last[page] = chance;
		}
	}
}

static void *change(void *unused)
{
	uint64_t state = 0x9E3779B97F4A7C15ull;

	while (!stop) {
		uint64_t chance = draw(&state);

		step(&areas[draw(&state) % AREAS], chance);
		steps++;
	}
	return unused;
}

static void *write_on(void *unused)
{
	uint64_t state = 88172645463325252ull;

	while (!stop) {
		uint64_t value = draw(&state), page = value % FIXED_PAGES;

		look((volatile char *)fixed + page * PAGE, fixed_last[page], "memory that stays", page);
		put((volatile char *)fixed + page * PAGE, value);
		fixed_last[page] = value;
		writes++;
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	uint64_t before;

	wl_init(argc, argv);
	file = MUST(open(wl_path("file"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
	for (uint64_t page = 0; page < FILE_PAGES; page++) {
		char bytes[PAGE] = { 0 };

		put(bytes, 0xF00000 + page);
		CHECK(write(file, bytes, PAGE) == PAGE, "cannot write to the file");
	}
	fixed = MUST(mmap(NULL, FIXED_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST0(pthread_create(&threads[0], NULL, change, NULL));
	MUST0(pthread_create(&threads[1], NULL, write_on, NULL));
	WAIT_FOR(steps > 1000 && writes > 1000, "nothing is written");

	wl_ready();
	before = steps + writes;
	WAIT_FOR(steps + writes > before + 1000, "the writers do not go on");
	stop = true;
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	if (wl_lose)
		fixed[17 * PAGE / 8] ^= 1;
	for (size_t page = 0; page < FIXED_PAGES; page++)
		look((volatile char *)fixed + page * PAGE, fixed_last[page], "memory that stays", page);
	for (size_t n = 0; n < AREAS; n++)
		look_at(&areas[n]);
	wl_ok();
}
