/* Close-on-exec belongs to the number, not to the open: duplicates differ; and numbers of the child differ from ours. */
#include "workload.h"

int main(int argc, char **argv)
{
	int fd, twin, far;
	pid_t child;

	wl_init(argc, argv);
	fd = MUST(open("/dev/null", O_RDWR | O_CLOEXEC));
	twin = MUST(dup(fd));
	far = MUST(fcntl(fd, F_DUPFD_CLOEXEC, 900));
	child = wl_fork();
	if (child == 0) {
		MUST(fcntl(fd, F_SETFD, 0));
		MUST(close(far));
		MUST(dup2(fd, 901));
		wl_child_ready();
		wl_wait();
		CHECK(fcntl(fd, F_GETFD) == 0 && fcntl(far, F_GETFD) < 0 && fcntl(901, F_GETFD) == 0, "the child's numbers differ");
		_exit(0);
	}
	wl_ready();
	if (wl_lose)
		MUST(fcntl(far, F_SETFD, 0));
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(twin, F_GETFD) == 0 && fcntl(far, F_GETFD) == FD_CLOEXEC, "flags are %d %d %d", fcntl(fd, F_GETFD),
	      fcntl(twin, F_GETFD), fcntl(far, F_GETFD));
	CHECK(far >= 900 && fcntl(901, F_GETFD) < 0, "the child's number is open in the parent");
	wl_join(child);
	wl_ok();
}
