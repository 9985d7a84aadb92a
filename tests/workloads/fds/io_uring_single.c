// peer: no, CRIU 4.2 knows no io_uring
/* Two io_urings of which only one thread may submit, as servers make them: one belongs to the first thread, one to another. */
#include <pthread.h>

#include "ring.h"

static struct ring of_main, of_thread;
static bool set_up, to_check;

static void turn(struct ring *ring, uint64_t rounds)
{
	for (uint64_t round = 0; round < rounds; round++) {
		for (unsigned at = 0; at < 3; at++)
			ring_give(ring, round + at);
		ring_submit(ring, 3);
		for (unsigned at = 0; at < 3; at++)
			ring_take(ring, round + at, 0);
	}
}

/* The state in which a ring is when it is frozen. */
static void prepare(struct ring *ring, unsigned flags, uint64_t rounds)
{
	ring_make(ring, 16, flags | IORING_SETUP_SINGLE_ISSUER);
	turn(ring, rounds);
	for (unsigned at = 0; at < 7; at++)
		ring_give(ring, 9)->flags = IOSQE_CQE_SKIP_SUCCESS;
	for (uint64_t tag = 500; tag < 509; tag++)
		ring_give(ring, tag);
	ring_submit(ring, 9);
}

static void check(struct ring *ring)
{
	int ends[2];
	char text[8] = "";

	for (uint64_t tag = 500; tag < 509; tag++)
		ring_take(ring, tag, 0);
	CHECK(ring_unread(ring) == 0, "a completion from nowhere");
	turn(ring, 50);
	MUST(pipe(ends));
	ring_read(ring, 600, ends[0], text, 4, -1);
	ring_submit(ring, 0);
	MUST(write(ends[1], "ping", 4));
	ring_submit(ring, 1);
	ring_take(ring, 600, 4);
	CHECK(memcmp(text, "ping", 4) == 0, "read '%s'", text);
}

static void *work(void *nothing)
{
	prepare(&of_thread, IORING_SETUP_DEFER_TASKRUN, 2000);
	__atomic_store_n(&set_up, true, __ATOMIC_RELEASE);
	wl_wait();
	WAIT_FOR(__atomic_load_n(&to_check, __ATOMIC_ACQUIRE), "the first thread does not begin");
	check(&of_thread);
	return nothing;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, work, NULL));
	WAIT_FOR(__atomic_load_n(&set_up, __ATOMIC_ACQUIRE), "the other thread does not begin");
	prepare(&of_main, RING_NO_SQARRAY, 700);

	wl_ready();
	if (wl_lose)
		ring_put(&of_thread, of_thread.params.cq_off.tail, of_thread.taken);
	CHECK(syscall(SYS_io_uring_enter, of_thread.fd, 1, 0, 0, NULL, 0) == -1 && errno == EEXIST,
	      "anybody may submit to the ring of the other thread");
	__atomic_store_n(&to_check, true, __ATOMIC_RELEASE);
	MUST0(pthread_join(thread, NULL));
	check(&of_main);
	wl_ok();
}
