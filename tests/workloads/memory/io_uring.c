// peer: no, CRIU 4.2 knows no io_uring
/* An io_uring with no request in flight: its descriptor, its mapped rings, collected and uncollected completions, a request that was not yet submitted. */
#include "ring.h"

int main(int argc, char **argv)
{
	struct ring ring;
	char first[16], later[16];
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(write(fd, "0123456789abcdefghijklmnopqrstuv", 32));
	ring_make(&ring, 8, 0);
	for (uint64_t tag = 1; tag <= 40; tag++) {
		ring_give(&ring, tag);
		ring_submit(&ring, 1);
		ring_take(&ring, tag, 0);
	}
	ring_read(&ring, 41, fd, first, 16, 3);
	ring_submit(&ring, 1);
	for (uint64_t tag = 42; tag < 50; tag++)
		ring_give(&ring, tag);
	ring_submit(&ring, 9);
	ring_take(&ring, 41, 16);
	/* Given, and left for later. */
	ring_read(&ring, 50, fd, later, 16, 10);
	ring_put(&ring, ring.params.sq_off.tail, ring.given);

	wl_ready();
	if (wl_lose)
		ring_put(&ring, ring.params.cq_off.tail, ring.taken);
	CHECK(ring_unread(&ring) == 8, "%u completions wait, not 8", ring_unread(&ring));
	ring_submit(&ring, 9);
	/* More than there is room for at once: the ones that wait must not be overwritten. */
	for (uint64_t tag = 51; tag < 58; tag++)
		ring_give(&ring, tag);
	ring_submit(&ring, 16);
	for (uint64_t tag = 42; tag < 50; tag++)
		ring_take(&ring, tag, 0);
	ring_take(&ring, 50, 16);
	CHECK(memcmp(later, "abcdefghijklmnop", 16) == 0, "the request that was left for later read something else");
	for (uint64_t tag = 51; tag < 58; tag++)
		ring_take(&ring, tag, 0);
	for (uint64_t tag = 100; tag < 200; tag++) {
		ring_give(&ring, tag);
		ring_read(&ring, tag + 1000, fd, later, 16, tag % 16);
		ring_submit(&ring, 2);
		ring_take(&ring, tag, 0);
		ring_take(&ring, tag + 1000, 16);
		CHECK(later[0] == "0123456789abcdef"[tag % 16], "a new request reads '%c'", later[0]);
	}
	CHECK(ring_unread(&ring) == 0, "a completion from nowhere");
	wl_ok();
}
