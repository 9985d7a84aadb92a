// peer: no, CRIU 4.2 cuts the count to 32 bits
/* An eventfd that holds the largest count there is. */
#include <sys/eventfd.h>

#include "workload.h"

int main(int argc, char **argv)
{
	uint64_t most = UINT64_MAX - 1, one = 1;
	int full;

	wl_init(argc, argv);
	full = MUST(eventfd(0, EFD_NONBLOCK));
	MUST(write(full, &most, 8));

	wl_ready();
	if (wl_lose)
		MUST(read(full, &most, 8));
	CHECK(write(full, &one, 8) < 0 && errno == EAGAIN, "it takes more");
	CHECK(read(full, &most, 8) == 8 && most == UINT64_MAX - 1, "the count is %lu", most);
	wl_ok();
}
