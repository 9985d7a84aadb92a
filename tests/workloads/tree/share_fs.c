// peer: no, CRIU 4.2 refuses it ("Can't make FS id")
/* A child that shares working directory, root and umask (CLONE_FS): what one changes holds for the other. */
#include <sched.h>

#include "workload.h"

static char stack[65536];
static volatile int *turn;

static int child(void *unused)
{
	char cwd[PATH_MAX];

	(void)unused;
	wl_wait();
	if (wl_lose)
		MUST(unshare(CLONE_FS));
	WAIT_FOR(*turn == 1, "the parent does nothing");
	MUST(getcwd(cwd, sizeof(cwd)) ? 0 : -1);
	CHECK(strcmp(cwd, wl_path("second")) == 0, "the child's working directory is %s", cwd);
	umask(0123);
	*turn = 2;
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t pid;

	wl_init(argc, argv);
	turn = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(mkdir(wl_path("first"), 0700));
	MUST(mkdir(wl_path("second"), 0700));
	MUST(chdir(wl_path("first")));
	pid = MUST(clone(child, stack + sizeof(stack), CLONE_FS | SIGCHLD, NULL));

	wl_ready();
	wl_sleep_ms(20);
	MUST(chdir(wl_path("second")));
	*turn = 1;
	wl_join(pid);
	CHECK(umask(0) == 0123, "the child's umask is not the parent's");
	wl_ok();
}
