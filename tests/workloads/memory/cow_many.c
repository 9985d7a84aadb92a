/* Much memory that a parent and its children share since the forks: the pages that one of them has written are its own,
   a grandchild shares its parent's, two children share what their parent has written since. */
#include "workload.h"

#define SIZE (16ul << 20)
#define PAGE 4096ul
/* What the parent writes after the forks of the first two; those still share what was there. */
#define REWRITTEN (1ul << 20)
/* What a child writes before its own fork, and so shares with the grandchild alone. */
#define CHILDS (2ul << 20)

static uint8_t *map;

/* In child N every 64th page from page N on is its own. */
static void write_own(int child)
{
	for (size_t at = (size_t)child * PAGE; at < SIZE; at += 64 * PAGE)
		wl_fill(map + at, PAGE, 100 + child);
}

static void verify(int child, bool rewritten)
{
	for (size_t at = 0; at < SIZE; at += PAGE) {
		uint64_t seed = 1 + at / PAGE;

		if (child > 0 && at / PAGE % 64 == (size_t)child)
			seed = 100 + child;
		else if (child >= 3 && at >= SIZE - CHILDS)
			seed = 100000 + at / PAGE;
		else if (rewritten && at < REWRITTEN)
			seed = 200000 + at / PAGE;
		CHECK(wl_differs(map + at, PAGE, seed) < 0, "process %d: the page at %zu is another", child, at);
	}
}

static void child_main(int child, bool rewritten)
{
	wl_child_ready();
	wl_wait();
	if (wl_lose && child == 2)
		map[SIZE / 2] ^= 1;
	verify(child, rewritten);
	/* Nobody else may see this. */
	memset(map, child, SIZE);
	wl_sleep_ms(50);
}

int main(int argc, char **argv)
{
	pid_t children[3];

	wl_init(argc, argv);
	map = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(madvise(map, SIZE, MADV_NOHUGEPAGE));
	for (size_t at = 0; at < SIZE; at += PAGE)
		wl_fill(map + at, PAGE, 1 + at / PAGE);
	for (int child = 1; child <= 3; child++) {
		bool rewritten = child == 3;

		/* The first two children share what was there before. */
		for (size_t at = 0; rewritten && at < REWRITTEN; at += PAGE)
			wl_fill(map + at, PAGE, 200000 + at / PAGE);
		children[child - 1] = wl_fork();
		if (children[child - 1] != 0)
			continue;
		if (child < 3) {
			write_own(child);
			child_main(child, false);
			_exit(0);
		}
		for (size_t at = SIZE - CHILDS; at < SIZE; at += PAGE)
			wl_fill(map + at, PAGE, 100000 + at / PAGE);
		write_own(3);
		pid_t grandchild = wl_fork();

		if (grandchild == 0) {
			child_main(3, true);
			_exit(0);
		}
		child_main(3, true);
		wl_join(grandchild);
		_exit(0);
	}
	wl_ready();
	verify(0, true);
	wl_sleep_ms(20);
	for (int child = 0; child < 3; child++)
		wl_join(children[child]);
	verify(0, true);
	wl_ok();
}
