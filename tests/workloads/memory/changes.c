/* Memory of which every page is known, and that from the word on is read, written, moved, dropped, mapped anew and inherited
   by children, all at once and in no order: while it is being filled by a lazy restore, for one. */
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

#include "workload.h"

#define PAGE 4096ul
#define REGION (1ul << 20)
#define PAGES (REGION / PAGE)
#define REGIONS 24
#define THREADS 4
#define TURNS 400

/* A region of one thread: what each of its pages holds, 0 for zeros. */
struct region {
	uint8_t *at;
	uint64_t holds[PAGES];
};

struct worker {
	pthread_t thread;
	uint64_t random;
	uint64_t last;
	struct region regions[REGIONS];
};

static struct worker *workers;

static uint64_t draw(struct worker *worker, uint64_t below)
{
	worker->random ^= worker->random << 13;
	worker->random ^= worker->random >> 7;
	worker->random ^= worker->random << 17;
	return worker->random % below;
}

static void write_page(struct worker *worker, struct region *region, size_t page)
{
	uint64_t *words = (uint64_t *)(region->at + page * PAGE);
	uint64_t value = ++worker->last;

	region->holds[page] = value;
	for (size_t i = 0; i < PAGE / 8; i++)
		words[i] = value * (i + 1);
}

static void check_page(struct region *region, size_t page, const char *who)
{
	volatile uint64_t *words = (uint64_t *)(region->at + page * PAGE);
	uint64_t value = region->holds[page];

	/* From anywhere on: whatever was missing is asked for by another address. */
	for (size_t i = 0, at = value % (PAGE / 8); i < PAGE / 8; i++, at = (at + 1) % (PAGE / 8))
		CHECK(words[at] == value * (at + 1), "%s: word %zu of page %zu at %p is %lx, was %lx", who, at, page, (void *)region->at, words[at],
		      value * (at + 1));
}

static void check_region(struct region *region, const char *who)
{
	for (size_t page = 0; page < PAGES; page++)
		check_page(region, page, who);
}

static uint8_t *map(void)
{
	return MUST(mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void fill(struct worker *worker, struct region *region)
{
	for (size_t page = 0; page < PAGES; page++)
		/* Some pages are not there at all. */
		if (draw(worker, 8) != 0)
			write_page(worker, region, page);
}

/* A child has what was here at its birth, and a child of its own, and keeps it whatever becomes of ours. */
static void inherit(struct worker *worker, bool deep)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < 3; i++)
			check_region(&worker->regions[draw(worker, REGIONS)], "child");
		for (int i = 0; i < 30; i++)
			write_page(worker, &worker->regions[draw(worker, REGIONS)], draw(worker, PAGES));
		if (deep)
			inherit(worker, false);
		for (int i = 0; i < 2; i++)
			check_region(&worker->regions[draw(worker, REGIONS)], "child, later");
		if (draw(worker, 2))
			execl("/bin/true", "true", NULL);
		_exit(0);
	}
	/* The parent goes on meanwhile. */
	for (int i = 0; i < 20; i++)
		write_page(worker, &worker->regions[draw(worker, REGIONS)], draw(worker, PAGES));
	wl_join(child);
}

static void move(struct worker *worker, struct region *region)
{
	uint8_t *there = map();

	if (draw(worker, 2)) {
		/* To a place of its own, out of a longer mapping. */
		MUST(munmap(there, REGION));
		there = MUST(mmap(NULL, 3 * REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) + REGION;
		region->at = MUST(mremap(region->at, REGION, REGION, MREMAP_MAYMOVE | MREMAP_FIXED, there));
		MUST(munmap(there - REGION, REGION));
		MUST(munmap(there + REGION, REGION));
		return;
	}
	/* In two halves. */
	MUST(mremap(region->at, REGION / 2, REGION / 2, MREMAP_MAYMOVE | MREMAP_FIXED, there));
	MUST(mremap(region->at + REGION / 2, REGION / 2, REGION / 2, MREMAP_MAYMOVE | MREMAP_FIXED, there + REGION / 2));
	region->at = there;
}

static void drop(struct worker *worker, struct region *region)
{
	size_t first = draw(worker, PAGES), count = 1 + draw(worker, PAGES - first);

	MUST(madvise(region->at + first * PAGE, count * PAGE, MADV_DONTNEED));
	for (size_t page = first; page < first + count; page++)
		region->holds[page] = 0;
}

static void map_anew(struct worker *worker, struct region *region)
{
	MUST(munmap(region->at, REGION));
	memset(region->holds, 0, sizeof region->holds);
	region->at = map();
	fill(worker, region);
}

/* By the kernel, which waits for what is missing in a call. */
static void through_a_pipe(struct region *region, size_t page)
{
	static const struct region nothing;
	struct region copy = nothing;
	_Alignas(8) uint8_t buffer[PAGE];
	int ends[2];

	MUST(pipe2(ends, O_CLOEXEC));
	CHECK(write(ends[1], region->at + page * PAGE, PAGE) == (ssize_t)PAGE, "write from page %zu: %s", page, strerror(errno));
	CHECK(read(ends[0], buffer, PAGE) == (ssize_t)PAGE, "read");
	close(ends[0]);
	close(ends[1]);
	copy.at = buffer;
	copy.holds[0] = region->holds[page];
	check_page(&copy, 0, "pipe");
}

static void *work(void *argument)
{
	struct worker *worker = argument;

	for (int turn = 0; turn < TURNS; turn++) {
		struct region *region = &worker->regions[draw(worker, REGIONS)];

		switch (draw(worker, 16)) {
		case 0:
			inherit(worker, draw(worker, 4) == 0);
			break;
		case 1:
			move(worker, region);
			break;
		case 2:
			drop(worker, region);
			break;
		case 3:
			map_anew(worker, region);
			break;
		case 4:
			check_region(region, "thread");
			break;
		case 5:
			MUST(mprotect(region->at + PAGE * draw(worker, PAGES), PAGE, PROT_READ));
			MUST(mprotect(region->at, REGION, PROT_READ | PROT_WRITE));
			break;
		case 6:
			through_a_pipe(region, draw(worker, PAGES));
			break;
		default:
			check_page(region, draw(worker, PAGES), "thread");
			write_page(worker, region, draw(worker, PAGES));
		}
	}
	for (int i = 0; i < REGIONS; i++)
		check_region(&worker->regions[i], "at last");
	return NULL;
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	workers = MUST(mmap(NULL, THREADS * sizeof *workers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < THREADS; i++) {
		workers[i].random = 88172645463325252ull * (i + 1);
		for (int j = 0; j < REGIONS; j++) {
			workers[i].regions[j].at = map();
			fill(&workers[i], &workers[i].regions[j]);
		}
	}

	wl_ready();
	if (wl_lose)
		for (int j = 0; j < REGIONS; j++)
			workers[1].regions[j].at[7 * PAGE + 8] ^= 1;
	/* Not as it was before the checkpoint, but for what it depends on. */
	for (int i = 0; i < THREADS; i++) {
		workers[i].random += getpid() * 977 + clock();
		MUST0(pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (int i = 0; i < THREADS; i++)
		MUST0(pthread_join(workers[i].thread, NULL));
	wl_ok();
}
