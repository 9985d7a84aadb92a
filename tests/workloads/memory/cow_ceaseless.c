// restless: its processes come and go all the time
/* Much memory that processes have in common by fork, and that all of them write to, move, give back and map anew all the
 * time, while others of them end and are born: every page holds what its process wrote to it last, or what was there at the
 * fork. Each step looks at what it finds before it changes it. */
#include <sched.h>
#include <sys/prctl.h>

#include "workload.h"

#define PAGE 4096ul
#define BLOCK_PAGES 16ul
#define BLOCK (BLOCK_PAGES * PAGE)
/* COW_MIB says how much memory there is, COW_PAUSE_US how long a process rests between two steps. */
#define DEFAULT_MIB 24
#define WORKERS 3
/* One in so many steps is the birth of a process. */
#define BIRTHS 1500

static uint8_t *common;
/* What each page must hold; 0 for zeros. It is in common as well, and changes with the pages. */
static uint64_t *last;
static size_t pages;
static unsigned pause_us;
static uint64_t state;
static int *counts;
/* How often this process, or who it was born of, has written. */
static uint64_t writes;

static uint64_t draw(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

/* Places all over a page, so that one that is torn is found. */
static void look(size_t page, const char *who)
{
	volatile uint64_t *words = (uint64_t *)(common + page * PAGE);

	/* The writer and the number of the write tell what was found instead. */
	for (size_t at = 0; at < 512; at += 73)
		CHECK(words[at] == last[page], "%s %d, page %zu at %zu: %#lx in the place of %#lx", who, getpid(), page, at, words[at],
		      last[page]);
}

static void look_at_all(const char *who)
{
	for (size_t page = 0; page < pages; page++)
		look(page, who);
}

static void put(size_t page)
{
	volatile uint64_t *words = (uint64_t *)(common + page * PAGE);
	uint64_t value = (uint64_t)getpid() << 40 | ++writes;

	for (size_t at = 0; at < 512; at += 73)
		words[at] = value;
	last[page] = value;
}

static void forget(size_t page, size_t count)
{
	memset(last + page, 0, count * sizeof(*last));
}

static void map_anew(size_t block)
{
	MUST(mmap(common + block * BLOCK, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	forget(block * BLOCK_PAGES, BLOCK_PAGES);
}

/* Memory comes to be at another address; where it was there is none. */
static void move(size_t from, size_t to)
{
	if (from == to)
		return;
	MUST(mremap(common + from * BLOCK, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, common + to * BLOCK));
	memcpy(last + to * BLOCK_PAGES, last + from * BLOCK_PAGES, BLOCK_PAGES * sizeof(*last));
	map_anew(from);
}

static void step(void);

/* A child that has what is here now, whatever becomes of ours. */
static pid_t bear(int steps)
{
	pid_t parent = getpid(), child = MUST(fork());

	if (child != 0)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	state = state * 6364136223846793005ull + getpid();
	for (int i = 0; i < 200; i++)
		look(draw(pages), "child");
	while (steps-- > 0)
		step();
	for (int i = 0; i < 200; i++)
		look(draw(pages), "child, at last");
	if (draw(2))
		execl("/bin/true", "true", NULL);
	_exit(0);
}

static void step(void)
{
	static bool is_child;
	size_t blocks = pages / BLOCK_PAGES, block = draw(blocks), page = draw(pages);

	look(page, "process");
	switch (draw(128)) {
	case 0:
		move(block, draw(blocks));
		break;
	case 1:
		map_anew(block);
		break;
	case 2:
		MUST0(madvise(common + page * PAGE, PAGE, MADV_DONTNEED));
		forget(page, 1);
		break;
	case 3:
		MUST0(mprotect(common + block * BLOCK, BLOCK, PROT_READ));
		look(block * BLOCK_PAGES + draw(BLOCK_PAGES), "read only");
		MUST0(mprotect(common + block * BLOCK, BLOCK, PROT_READ | PROT_WRITE));
		break;
	default:
		put(page);
	}
	if (draw(BIRTHS) == 0 && !is_child) {
		bool was = is_child;

		is_child = true;
		wl_join(bear(50 + draw(400)));
		is_child = was;
	}
	if (pause_us > 0)
		usleep(pause_us);
}

/* Until the word comes; what it counts is seen by all. */
static void work(int number)
{
	for (unsigned long steps = 0; steps % 256 != 0 || !wl_told_to_go(); steps++) {
		step();
		__atomic_add_fetch(&counts[number], 1, __ATOMIC_RELAXED);
		if (steps % 16 == 0)
			sched_yield();
	}
	look_at_all("process, at last");
}

static unsigned setting(const char *name, unsigned otherwise)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	pid_t workers[WORKERS];
	size_t size = (size_t)setting("COW_MIB", DEFAULT_MIB) << 20;

	wl_init(argc, argv);
	pause_us = setting("COW_PAUSE_US", 20);
	pages = size / PAGE;
	state = 88172645463325252ull;
	counts = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	common = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	last = MUST(mmap(NULL, pages * sizeof(*last), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	/* Half of it in huge pages, as far as there are any. */
	madvise(common, size / 2, MADV_HUGEPAGE);
	madvise(common + size / 2, size / 2, MADV_NOHUGEPAGE);
	for (size_t page = 0; page < pages; page++) {
		draw(2);
		put(page);
	}
	for (int i = 0; i < WORKERS; i++) {
		workers[i] = MUST(fork());
		if (workers[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			state += i + 1;
			work(i + 1);
			_exit(0);
		}
		/* Not all have the same in common. */
		for (int n = 0; n < 100; n++)
			put(draw(pages));
	}
	WAIT_FOR(counts[1] > 200 && counts[2] > 200 && counts[3] > 200, "nobody writes");

	wl_say("ready\n");
	work(0);
	if (wl_lose)
		common[7 * PAGE] ^= 1;
	look_at_all("process, at last");
	for (int i = 0; i < WORKERS; i++)
		wl_join(workers[i]);
	wl_ok();
}
