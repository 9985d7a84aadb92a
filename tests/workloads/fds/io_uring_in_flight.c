// refused: requests are in flight
// peer: no, CRIU 4.2 knows no io_uring
/* An io_uring with a request that waits for a pipe: it exists in the kernel alone. */
#include "ring.h"

int main(int argc, char **argv)
{
	struct ring ring;
	char byte = 0;
	int ends[2];

	wl_init(argc, argv);
	MUST(pipe(ends));
	ring_make(&ring, 4, 0);
	ring_read(&ring, 7, ends[0], &byte, 1, -1);
	ring_submit(&ring, 0);

	wl_ready();
	if (wl_lose)
		close(ends[0]);
	CHECK(ring_unread(&ring) == 0, "the request has completed by itself");
	MUST(write(ends[1], wl_lose ? "x" : "w", 1));
	ring_give(&ring, 8)->opcode = IORING_OP_NOP;
	ring_submit(&ring, 2);
	ring_take(&ring, 7, 1);
	ring_take(&ring, 8, 0);
	CHECK(byte == 'w', "the request has read something else");
	wl_ok();
}
