// peer: no, CRIU 4.2 knows no io_uring
/*
 * An io_uring through which very many requests have gone, made as newer libraries make it: its indices go on from where they
 * were, completions or not. A child has it too, mapped at the same place, and sees what the parent does.
 */
#include "ring.h"

static struct ring ring;
/* Shared: the parent has seen what it gave be taken. */
static bool *seen;

static void turn(unsigned rounds)
{
	for (unsigned round = 0; round < rounds; round++) {
		for (unsigned at = 0; at < 64; at++)
			ring_give(&ring, at);
		ring_submit(&ring, 64);
		for (unsigned at = 0; at < 64; at++)
			ring_take(&ring, at, 0);
	}
}

int main(int argc, char **argv)
{
	struct io_uring_sqe *silent;
	pid_t child;

	wl_init(argc, argv);
	ring_make(&ring, 64, RING_NO_SQARRAY | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN);
	turn(40000);
	/* Requests without a completion, so that the two queues count apart. */
	for (unsigned round = 0; round < 5; round++) {
		silent = ring_give(&ring, 1);
		silent->flags = IOSQE_CQE_SKIP_SUCCESS;
	}
	ring_give(&ring, 77);
	ring_submit(&ring, 1);
	seen = MUST(mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	child = wl_fork_waiting();
	if (child == 0) {
		ring.given += 2;
		WAIT_FOR(ring_unread(&ring) == 2, "what the parent does in the ring is not seen");
		ring_take(&ring, 77, 0);
		ring_take(&ring, 78, -EINVAL);
		WAIT_FOR(__atomic_load_n(seen, __ATOMIC_ACQUIRE), "the parent does not go on");
		turn(3);
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		ring_put(&ring, ring.params.sq_off.tail, ring.given - 1);
	CHECK(ring_word(&ring, ring.params.sq_off.tail) == 64 * 40000 + 6, "the tail is %u", ring_word(&ring, ring.params.sq_off.tail));
	/* A request that cannot be, and others behind it: with SUBMIT_ALL they are taken all the same. */
	ring_give(&ring, 78)->opcode = 255;
	silent = ring_give(&ring, 1);
	silent->flags = IOSQE_CQE_SKIP_SUCCESS;
	/* Without a wait: once the child has taken the completions, there is none to wait for. */
	ring_submit(&ring, 0);
	__atomic_store_n(seen, true, __ATOMIC_RELEASE);
	wl_join(child);
	ring.given += 3 * 64;
	ring.taken += 2 + 3 * 64;
	turn(10);
	CHECK(ring_unread(&ring) == 0, "a completion from nowhere");
	wl_ok();
}
