// peer: no, CRIU 4.2 refuses processes that share their memory
/* A child that shares all that it can without being a thread: memory, descriptors, directories, signal actions. */
#include "sharer.h"

static volatile int opened;
static char words[] = "written before the checkpoint";
static uint8_t *volatile mapped;

static int child(void)
{
	opened = open(wl_path("by-child"), O_RDWR | O_CREAT, 0600);
	umask(027);
	sharer_set_action();
	mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mapped[7] = 11;
	if (strcmp(words, "written by the parent") != 0)
		return 3;
	sharer_turn = 2;
	while (sharer_turn != 3)
		wl_sleep_ms(2);
	/* What the parent has unmapped and closed meanwhile is no longer here either. */
	return fcntl(opened, F_GETFD) == -1 && madvise(mapped, 4096, MADV_NORMAL) == -1 ? 0 : 4;
}

int main(int argc, char **argv)
{
	mode_t mask;
	pid_t pid;

	wl_init(argc, argv);
	pid = sharer_begin(CLONE_FILES | CLONE_FS | CLONE_SIGHAND, child);

	wl_ready();
	strcpy(words, wl_lose ? "kept to oneself" : "written by the parent");
	sharer_let();
	CHECK(fcntl(opened, F_GETFD) >= 0, "what the child has opened is not open here");
	mask = umask(022);
	CHECK(mask == 027, "the child's umask is not ours: %o", mask);
	sharer_check_action();
	CHECK(mapped[7] == 11, "a mapping that the child made is not there");
	MUST(close(opened));
	MUST(munmap(mapped, 4096));
	sharer_turn = 3;
	wl_join(pid);
	wl_ok();
}
