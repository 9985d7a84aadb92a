// peer: no, CRIU 4.2 loses the semaphore mode
/* An eventfd in semaphore mode: each read takes one. */
#include <sys/eventfd.h>

#include "workload.h"

static uint64_t take(int fd)
{
	uint64_t value = 0;

	return read(fd, &value, 8) == 8 ? value : 0;
}

int main(int argc, char **argv)
{
	int semaphore;

	wl_init(argc, argv);
	semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));

	wl_ready();
	if (wl_lose)
		take(semaphore);
	for (int i = 0; i < 3; i++)
		CHECK(take(semaphore) == 1, "the semaphore is not at one after %d", i);
	CHECK(take(semaphore) == 0 && errno == EAGAIN, "the semaphore has a fourth");
	wl_ok();
}
