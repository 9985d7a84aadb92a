/* What shows only at an exec after the restore: descriptors that close, ignored signals, environment, name. */
#include "workload.h"

static void handler(int signal)
{
	(void)signal;
}

int main(int argc, char **argv)
{
	char fd_text[16], *name = "EXEC_LATER";

	if (getenv(name)) {
		/* The second life. */
		int kept = atoi(getenv(name));

		wl_init(argc, argv);
		CHECK(fcntl(kept, F_GETFD) == 0, "the descriptor without close-on-exec is gone");
		CHECK(fcntl(kept + 1, F_GETFD) < 0 && errno == EBADF, "the descriptor with close-on-exec is still there");
		CHECK(signal(SIGUSR1, SIG_DFL) == SIG_IGN, "the ignored signal is no longer ignored");
		CHECK(signal(SIGUSR2, SIG_DFL) == SIG_DFL, "the handled signal has not gone back to its default");
		wl_ok();
	}
	wl_init(argc, argv);
	MUST(dup2(MUST(open("/dev/null", O_RDONLY)), 40));
	MUST(dup3(40, 41, O_CLOEXEC));
	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, handler);
	wl_ready();
	if (wl_lose)
		MUST(fcntl(41, F_SETFD, 0));
	snprintf(fd_text, sizeof(fd_text), "%d", 40);
	setenv(name, fd_text, 1);
	MUST(execv("/proc/self/exe", argv));
}
