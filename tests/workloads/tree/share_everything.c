// peer: no, CRIU 4.2 refuses processes that share their memory
/* A child that shares all that it can without being a thread: memory, descriptors, directories, signal actions. */
#include <sched.h>

#include "workload.h"

static char stack[65536] __attribute__((aligned(16)));
static volatile int turn;
static volatile int opened;
static char words[] = "written before the checkpoint";
static uint8_t *volatile mapped;

static void handler(int signal)
{
	(void)signal;
}

static int child(void *unused)
{
	struct sigaction action = { .sa_handler = handler };

	(void)unused;
	while (turn == 0)
		wl_nap();
	opened = open(wl_path("by-child"), O_RDWR | O_CREAT, 0600);
	umask(027);
	sigaction(SIGUSR2, &action, NULL);
	mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mapped[7] = 11;
	if (strcmp(words, "written by the parent") != 0)
		syscall(SYS_exit_group, 3);
	turn = 2;
	while (turn != 3)
		wl_sleep_ms(2);
	/* What the parent has unmapped and closed meanwhile is no longer here either. */
	syscall(SYS_exit_group, fcntl(opened, F_GETFD) == -1 && madvise(mapped, 4096, MADV_NORMAL) == -1 ? 0 : 4);
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action;
	mode_t mask;
	pid_t pid;

	wl_init(argc, argv);
	pid = MUST(clone(child, stack + sizeof(stack), CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | SIGCHLD, NULL));

	wl_ready();
	strcpy(words, wl_lose ? "kept to oneself" : "written by the parent");
	turn = 1;
	WAIT_FOR(turn == 2, "the two no longer share their memory");
	CHECK(fcntl(opened, F_GETFD) >= 0, "what the child has opened is not open here");
	mask = umask(022);
	CHECK(mask == 027, "the child's umask is not ours: %o", mask);
	MUST(sigaction(SIGUSR2, NULL, &action));
	CHECK(action.sa_handler == handler, "an action that the child set does not hold here");
	CHECK(mapped[7] == 11, "a mapping that the child made is not there");
	MUST(close(opened));
	MUST(munmap(mapped, 4096));
	turn = 3;
	wl_join(pid);
	wl_ok();
}
