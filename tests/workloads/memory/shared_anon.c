/* MAP_SHARED anonymous memory between a parent and its child: one segment, not two copies. */
#include "workload.h"

#define SIZE (32 * 4096)

struct talk {
	volatile int from_parent, from_child;
};

static void child(uint8_t *shared, struct talk *talk)
{
	wl_child_ready();
	wl_wait();
	WAIT_FOR(talk->from_parent == 1, "the child does not see what the parent wrote");
	CHECK(wl_differs(shared, SIZE, 7) < 0, "the child's view differs at %zd", wl_differs(shared, SIZE, 7));
	talk->from_child = 2;
	_exit(0);
}

int main(int argc, char **argv)
{
	uint8_t *shared;
	struct talk *talk;
	pid_t pid;

	wl_init(argc, argv);
	shared = MUST(mmap(NULL, SIZE + 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	talk = (struct talk *)(shared + SIZE);
	wl_fill(shared, SIZE, 7);
	pid = wl_fork();
	if (pid == 0)
		child(shared, talk);

	wl_ready();
	if (wl_lose) {
		/* The parent falls back to a copy of its own. */
		uint8_t *copy = MUST(mmap(NULL, SIZE + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

		memcpy(copy, shared, SIZE + 4096);
		wl_fill(shared, SIZE, 8);
		talk->from_parent = 1;
		talk = (struct talk *)(copy + SIZE);
	}
	talk->from_parent = 1;
	wl_join(pid);
	CHECK(talk->from_child == 2, "the parent does not see what the child wrote");
	CHECK(wl_differs(shared, SIZE, 7) < 0, "the parent's view differs at %zd", wl_differs(shared, SIZE, 7));
	wl_ok();
}
