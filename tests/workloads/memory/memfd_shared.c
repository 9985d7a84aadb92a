/* One memfd in two processes: the same open description in both, and a second open of the same file by /proc. */
#include "workload.h"

int main(int argc, char **argv)
{
	char path[64], byte;
	int fd, reopened;
	pid_t child;

	wl_init(argc, argv);
	fd = MUST(memfd_create("shared", MFD_CLOEXEC));
	MUST(write(fd, "0123456789", 10));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	reopened = MUST(open(path, O_RDONLY));
	MUST(lseek(fd, 2, SEEK_SET));
	MUST(lseek(reopened, 7, SEEK_SET));
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(lseek(fd, 0, SEEK_CUR) == 5, "the child does not share the position of the memfd");
		MUST(pwrite(fd, "B", 1, 0));
		_exit(0);
	}

	wl_ready();
	CHECK(lseek(fd, 0, SEEK_CUR) == 2, "position is %ld", (long)lseek(fd, 0, SEEK_CUR));
	CHECK(lseek(reopened, 0, SEEK_CUR) == 7, "position of the reopened file is %ld", (long)lseek(reopened, 0, SEEK_CUR));
	MUST(lseek(fd, 5, SEEK_SET));
	wl_join(child);
	if (wl_lose)
		MUST(pwrite(fd, "L", 1, 0));
	CHECK(pread(reopened, &byte, 1, 0) == 1 && byte == 'B', "a write through one open is not seen through the other");
	CHECK(write(reopened, "x", 1) < 0 && errno == EBADF, "the reopened descriptor is writable");
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(reopened, F_GETFD) == 0, "close-on-exec is lost or invented");
	wl_ok();
}
