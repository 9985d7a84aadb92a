/* A child that shares the table of descriptors (CLONE_FILES): what one opens the other has. */
#include <sched.h>

#include "workload.h"

static char stack[65536];
static volatile int *opened;

static int child(void *unused)
{
	(void)unused;
	wl_wait();
	if (wl_lose)
		MUST(unshare(CLONE_FILES));
	*opened = MUST(open(wl_path("by-child"), O_RDWR | O_CREAT, 0600));
	MUST(write(*opened, "hello", 5));
	WAIT_FOR(fcntl(*opened, F_GETFD) < 0 || wl_lose, "what the parent closes stays open in the child");
	_exit(0);
}

int main(int argc, char **argv)
{
	char text[8] = "";
	pid_t pid;

	wl_init(argc, argv);
	opened = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	pid = MUST(clone(child, stack + sizeof(stack), CLONE_FILES | SIGCHLD, NULL));

	wl_ready();
	WAIT_FOR(*opened, "the child opens nothing");
	wl_sleep_ms(10);
	CHECK(pread(*opened, text, 5, 0) == 5 && strcmp(text, "hello") == 0, "the child's file is not open in the parent: %s", strerror(errno));
	MUST(close(*opened));
	wl_join(pid);
	wl_ok();
}
