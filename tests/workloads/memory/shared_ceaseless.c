// peer: no, it takes what changes meanwhile for another file
// differs: process *, processes, mappings and memory come and go all the time
// differs: thread *, processes, mappings and memory come and go all the time
// differs: mapping *, processes, mappings and memory come and go all the time
// differs: descriptor *, processes, mappings and memory come and go all the time
/* Shared memory that three processes write to all the time, through mappings that come, move and go, by processes that come
 * and go, and by system calls: every page holds what was written to it last, whatever the moment at which it is looked at,
 * copied or frozen. Each process has pages of its own in each segment, and looks at what it finds before it changes it. */
#include "workload.h"

#define PAGE 4096
#define WRITERS 3
#define OWN 256
#define PAGES (WRITERS * OWN)
#define LEN ((size_t)PAGES * PAGE)
/* Milliseconds between changes that are none of contents alone, at most: some follow one another, then there is calm, or what
 * no other process gets to see but by what is written. */
#define SOON 30
#define CALM 3000
#define IN_A_ROW 6

/* Anonymous memory; memfds without descriptors, with one, and with one that seals forbid to write by. */
enum { ANONYMOUS, BARE, OPEN, SEALED, SEGMENTS };

static volatile char *memory[SEGMENTS], *second[SEGMENTS];
static uint64_t last[SEGMENTS][PAGES];
/* Which of its own pages a second mapping still has. */
static bool shown[SEGMENTS][PAGES];
static volatile uint64_t *steps;
static int fds[SEGMENTS] = { -1, -1, -1, -1 };
static int self;

static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Three places of a page, so that one that is torn is found. */
static void look(volatile char *from, int segment, size_t page)
{
	for (size_t at = 0; at <= 4088; at += 2044 / 8 * 8) {
		uint64_t found = *(volatile uint64_t *)(from + page * PAGE + at);

		CHECK(found == last[segment][page], "segment %d, page %zu at %zu: %#lx in the place of %#lx", segment, page, at, found,
		      last[segment][page]);
	}
}

static void put(volatile char *to, size_t page, uint64_t value)
{
	for (size_t at = 0; at <= 4088; at += 2044 / 8 * 8)
		*(volatile uint64_t *)(to + page * PAGE + at) = value;
}

static void write_to(volatile char *to, int segment, size_t page, uint64_t value)
{
	look(to, segment, page);
	put(to, page, value);
	last[segment][page] = value;
}

static volatile char *once_more(int segment, size_t len)
{
	return MUST(mremap((void *)memory[segment], 0, len, MREMAP_MAYMOVE));
}

/* By a process that is gone before anybody looks. */
static void by_a_child(int segment, uint64_t chance)
{
	uint64_t values[8];
	pid_t child;

	for (int i = 0; i < 8; i++)
		values[i] = draw(&chance);
	child = MUST(fork());
	if (child == 0) {
		for (int i = 0; i < 8; i++)
			put(memory[segment], (size_t)self * OWN + values[i] % OWN, values[i]);
		_exit(0);
	}
	wl_join(child);
	for (int i = 0; i < 8; i++)
		last[segment][(size_t)self * OWN + values[i] % OWN] = values[i];
}

static void by_system_calls(size_t page, uint64_t value)
{
	static char bytes[PAGE];

	switch (value % 3) {
	case 0:
		put(bytes, 0, value);
		CHECK(MUST(pwrite(fds[OPEN], bytes, PAGE, (off_t)(page * PAGE))) == PAGE, "cannot write");
		last[OPEN][page] = value;
		break;
	case 1:
		MUST(fallocate(fds[OPEN], FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)(page * PAGE), PAGE));
		last[OPEN][page] = 0;
		break;
	default:
		/* Longer and shorter again, by what nobody maps. */
		if (self == 0) {
			MUST(ftruncate(fds[OPEN], LEN + PAGE));
			MUST(ftruncate(fds[OPEN], LEN));
		}
	}
}

/* What makes no mapping: a page that goes from the second right after it was written to by that, and the like. */
static void change_quietly(uint64_t chance)
{
	int segment = (int)(chance / 16 % SEGMENTS);
	size_t page = (size_t)self * OWN + chance / 64 % OWN;

	switch (chance % 4) {
	case 0:
		by_system_calls(page, chance / 16);
		break;
	case 1:
		write_to(memory[segment], segment, page, chance);
		MUST(madvise((void *)(memory[segment] + page * PAGE), PAGE, MADV_DONTNEED));
		break;
	default:
		if (second[segment] && shown[segment][page]) {
			write_to(second[segment], segment, page, chance);
			MUST(munmap((void *)(second[segment] + page * PAGE), PAGE));
			shown[segment][page] = false;
		}
	}
}

/* No more than is there: where pages have gone, something else may have come to be. */
static void unmap_second(int segment)
{
	for (size_t page = 0, end; page < PAGES; page = end + 1) {
		for (end = page; end < PAGES && shown[segment][end]; end++)
			;
		if (end > page)
			MUST(munmap((void *)(second[segment] + page * PAGE), (end - page) * PAGE));
	}
	second[segment] = NULL;
}

/* A change of mappings, or past them. */
static void change(uint64_t chance)
{
	int segment = (int)(chance / 16 % SEGMENTS);
	size_t page = (size_t)self * OWN + chance / 64 % OWN, half = LEN / 2;
	volatile char *other;
	void *room;

	switch (chance % 10) {
	case 0:
		by_a_child(segment, chance);
		break;
	case 1:
		other = once_more(segment, LEN);
		write_to(other, segment, page, chance);
		MUST(munmap((void *)other, LEN));
		break;
	case 2:
		room = MUST(mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		memory[segment] = MUST(mremap((void *)memory[segment], LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, room));
		break;
	case 3:
		if (second[segment]) {
			if (shown[segment][page])
				write_to(second[segment], segment, page, chance);
			unmap_second(segment);
		} else {
			second[segment] = once_more(segment, LEN);
			memset(shown[segment], true, sizeof(shown[segment]));
		}
		break;
	case 4:
		write_to(memory[segment], segment, page, chance);
		MUST(madvise((void *)memory[segment], LEN, MADV_DONTNEED));
		break;
	case 5:
		if (segment != SEALED) {
			MUST(madvise((void *)(memory[segment] + page * PAGE), PAGE, MADV_REMOVE));
			last[segment][page] = 0;
		}
		break;
	case 6:
	case 7:
		by_system_calls(page, chance / 16);
		break;
	case 8:
		MUST(mprotect((void *)memory[segment], half, PROT_READ));
		look(memory[segment], segment, page);
		MUST(mprotect((void *)memory[segment], half, PROT_READ | PROT_WRITE));
		break;
	default:
		/* A mapping that grows where it is, if there is room. */
		other = once_more(segment, half);
		room = mremap((void *)other, half, LEN, 0);
		if (room != MAP_FAILED) {
			write_to(other, segment, page, chance);
			MUST(munmap((void *)(other + half), half));
		}
		MUST(munmap((void *)other, half));
	}
}

static void look_at_all(void)
{
	for (int segment = 0; segment < SEGMENTS; segment++)
		for (size_t page = 0; page < OWN; page++)
			look(memory[segment], segment, (size_t)self * OWN + page);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void write_on(void)
{
	uint64_t state = 0x9E3779B97F4A7C15ull * (self + 1), due = now_ms();

	/* At least once, however late it comes to that. */
	do {
		for (int i = 0; i < 100; i++) {
			uint64_t chance = draw(&state);
			int segment = chance / 8 % SEGMENTS;
			size_t page = (size_t)self * OWN + chance / 64 % OWN;
			bool other = chance % 8 < 3 && second[segment] && shown[segment][page];

			write_to(other ? second[segment] : memory[segment], segment, page, chance);
		}
		if (now_ms() >= due) {
			change(draw(&state));
			due = now_ms() + draw(&state) % (draw(&state) % IN_A_ROW ? SOON : CALM);
		}
		if (draw(&state) % 8 == 0)
			change_quietly(draw(&state));
		steps[self]++;
		usleep(200);
	} while (!wl_told_to_go());
	look_at_all();
}

static void make(int segment, const char *name)
{
	fds[segment] = MUST(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
	MUST(ftruncate(fds[segment], LEN));
	memory[segment] = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fds[segment], 0));
}

int main(int argc, char **argv)
{
	pid_t children[WRITERS];

	wl_init(argc, argv);
	steps = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	memory[ANONYMOUS] = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	make(BARE, "bare");
	make(OPEN, "open");
	make(SEALED, "sealed");
	MUST(fcntl(fds[SEALED], F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	MUST(close(fds[BARE]));
	for (int i = 1; i < WRITERS; i++) {
		children[i] = wl_fork();
		if (children[i] == 0) {
			self = i;
			wl_child_ready();
			write_on();
			_exit(0);
		}
	}
	wl_say("ready\n");
	write_on();
	for (int i = 1; i < WRITERS; i++)
		wl_join(children[i]);
	for (int i = 0; i < WRITERS; i++)
		CHECK(steps[i] > 0, "writer %d has not written", i);
	if (wl_lose)
		put(memory[ANONYMOUS], 17, 4711);
	look_at_all();
	wl_ok();
}
