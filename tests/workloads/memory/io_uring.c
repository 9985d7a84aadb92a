// refused: io_uring
// peer: no, CRIU 4.2 knows no io_uring
/* An io_uring with no request in flight: its descriptor, its mapped rings, a collected and an uncollected completion. */
#include <linux/io_uring.h>

#include "workload.h"

struct ring {
	int fd;
	struct io_uring_params params;
	uint8_t *rings;
	struct io_uring_sqe *entries;
};

static volatile uint32_t *at(struct ring *ring, uint32_t offset)
{
	return (volatile uint32_t *)(ring->rings + offset);
}

static void submit_nop(struct ring *ring, uint64_t tag)
{
	uint32_t tail = *at(ring, ring->params.sq_off.tail), slot = tail & *at(ring, ring->params.sq_off.ring_mask);

	memset(&ring->entries[slot], 0, sizeof(ring->entries[slot]));
	ring->entries[slot].opcode = IORING_OP_NOP;
	ring->entries[slot].user_data = tag;
	at(ring, ring->params.sq_off.array)[slot] = slot;
	__atomic_store_n(at(ring, ring->params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1, "io_uring_enter: %s", strerror(errno));
}

/* The tag of the next completion, 0 if there is none. */
static uint64_t collect(struct ring *ring)
{
	uint32_t head = *at(ring, ring->params.cq_off.head);
	struct io_uring_cqe *completions = (struct io_uring_cqe *)(ring->rings + ring->params.cq_off.cqes);
	uint64_t tag;

	if (head == __atomic_load_n(at(ring, ring->params.cq_off.tail), __ATOMIC_ACQUIRE))
		return 0;
	tag = completions[head & *at(ring, ring->params.cq_off.ring_mask)].user_data;
	__atomic_store_n(at(ring, ring->params.cq_off.head), head + 1, __ATOMIC_RELEASE);
	return tag;
}

int main(int argc, char **argv)
{
	struct ring ring = { 0 };
	size_t size;

	wl_init(argc, argv);
	ring.fd = MUST(syscall(SYS_io_uring_setup, 8, &ring.params));
	CHECK(ring.params.features & IORING_FEAT_SINGLE_MMAP, "the kernel wants two ring mappings");
	size = ring.params.cq_off.cqes + ring.params.cq_entries * sizeof(struct io_uring_cqe);
	if (size < ring.params.sq_off.array + ring.params.sq_entries * 4)
		size = ring.params.sq_off.array + ring.params.sq_entries * 4;
	ring.rings = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING));
	ring.entries = MUST(mmap(NULL, ring.params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
				 ring.fd, IORING_OFF_SQES));
	submit_nop(&ring, 41);
	submit_nop(&ring, 42);
	CHECK(collect(&ring) == 41, "no completion before the checkpoint");

	wl_ready();
	if (wl_lose)
		collect(&ring);
	CHECK(collect(&ring) == 42, "the uncollected completion is lost");
	CHECK(collect(&ring) == 0, "a completion from nowhere");
	for (uint64_t tag = 100; tag < 130; tag++) {
		submit_nop(&ring, tag);
		CHECK(collect(&ring) == tag, "a new request does not complete");
	}
	wl_ok();
}
