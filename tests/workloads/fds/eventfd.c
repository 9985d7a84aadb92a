/* eventfds: counts, one shared with a child. */
#include <sys/eventfd.h>

#include "workload.h"

static uint64_t take(int fd)
{
	uint64_t value = 0;

	return read(fd, &value, 8) == 8 ? value : 0;
}

int main(int argc, char **argv)
{
	int counter, empty, shared;
	pid_t child;

	wl_init(argc, argv);
	counter = MUST(eventfd(12345, EFD_CLOEXEC));
	empty = MUST(eventfd(0, EFD_NONBLOCK));
	shared = MUST(eventfd(0, 0));
	child = wl_fork();
	if (child == 0) {
		wl_child_ready();
		/* Asleep in a read of it. */
		CHECK(take(shared) == 77, "the child does not get the parent's count");
		_exit(0);
	}
	wl_wait_blocked(child, SYS_read);

	wl_ready();
	if (wl_lose)
		MUST(write(empty, &(uint64_t){ 1 }, 8));
	CHECK(take(counter) == 12345, "the count is lost");
	CHECK(take(empty) == 0 && errno == EAGAIN, "the empty one is not empty, or blocks");
	CHECK(fcntl(counter, F_GETFD) == FD_CLOEXEC && fcntl(counter, F_GETFL) == O_RDWR, "flags of the first: %#o", fcntl(counter, F_GETFL));
	MUST(write(shared, &(uint64_t){ 77 }, 8));
	wl_join(child);
	wl_ok();
}
