// peer: no, CRIU 4.2 refuses shared memory descriptors
/* A child process in the same address space (CLONE_VM without CLONE_THREAD): both see every later mapping. */
#include "sharer.h"

static uint8_t *volatile mapped;

static int child(void)
{
	mapped = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	mapped[5] = 42;
	sharer_turn = 2;
	return wl_lose ? 1 : 0;
}

int main(int argc, char **argv)
{
	pid_t pid;

	wl_init(argc, argv);
	pid = sharer_begin(0, child);

	wl_ready();
	sharer_let();
	CHECK(mapped[5] == 42, "a mapping that the child made is not there");
	wl_join(pid);
	wl_ok();
}
