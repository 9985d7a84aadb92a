/* pidfds: of the process itself, of a child, of a child that is gone; each still sends signals to the right one. */
#include <poll.h>
#include <sys/pidfd.h>

#include "workload.h"

static int dead_child(void)
{
	pid_t child = MUST(fork());
	int fd;

	if (child == 0)
		pause();
	fd = MUST(syscall(SYS_pidfd_open, child, 0));
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, NULL, 0));
	return fd;
}

int main(int argc, char **argv)
{
	int of_self, of_child, of_dead, nonblocking, status;
	struct pollfd watched;
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork_idle();
	of_self = MUST(syscall(SYS_pidfd_open, getpid(), 0));
	of_child = MUST(syscall(SYS_pidfd_open, child, 0));
	nonblocking = MUST(syscall(SYS_pidfd_open, child, O_NONBLOCK));
	of_dead = dead_child();

	wl_ready();
	if (wl_lose)
		MUST(dup2(of_self, of_dead));
	CHECK(syscall(SYS_pidfd_send_signal, of_self, 0, NULL, 0) == 0, "our own: %s", strerror(errno));
	CHECK(syscall(SYS_pidfd_send_signal, of_dead, 0, NULL, 0) < 0 && errno == ESRCH, "the dead child's is alive");
	watched = (struct pollfd){ of_child, POLLIN, 0 };
	CHECK(poll(&watched, 1, 0) == 0, "the living child's says that it has ended");
	CHECK(fcntl(nonblocking, F_GETFL) & O_NONBLOCK && !(fcntl(of_child, F_GETFL) & O_NONBLOCK), "O_NONBLOCK is lost or invented");
	CHECK(syscall(SYS_pidfd_send_signal, of_child, SIGTERM, NULL, 0) == 0, "the child's: %s", strerror(errno));
	CHECK(poll(&watched, 1, 5000) == 1, "the child does not end");
	MUST(waitpid(child, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "the child ended with %#x", status);
	wl_ok();
}
