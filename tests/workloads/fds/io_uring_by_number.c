// peer: no, CRIU 4.2 knows no io_uring
/* Threads that call their io_urings by numbers of their own instead of descriptors, as libraries do for speed. */
#include <pthread.h>

#include "ring.h"

#define REGISTER_RING_FDS 20
#define UNREGISTER_RING_FDS 21
#define ENTER_REGISTERED_RING (1u << 4)

static bool set_up;

static void name(struct ring *ring, unsigned number)
{
	struct io_uring_rsrc_update update = { .offset = number, .data = ring->fd };

	CHECK(syscall(SYS_io_uring_register, ring->fd, REGISTER_RING_FDS, &update, 1) == 1, "register: %s", strerror(errno));
}

static void check(struct ring *ring, unsigned number)
{
	ring_give(ring, 7);
	ring_put(ring, ring->params.sq_off.tail, ring->given);
	CHECK(syscall(SYS_io_uring_enter, number, 1, 1, IORING_ENTER_GETEVENTS | ENTER_REGISTERED_RING, NULL, 0) == 1,
	      "there is no ring %u: %s", number, strerror(errno));
	ring_take(ring, 7, 0);
	CHECK(syscall(SYS_io_uring_enter, 15, 0, 0, ENTER_REGISTERED_RING, NULL, 0) == -1 && errno == EBADF, "there is a ring 15");
}

static void *work(void *nothing)
{
	struct ring ring;

	ring_make(&ring, 8, IORING_SETUP_SINGLE_ISSUER);
	name(&ring, 0);
	__atomic_store_n(&set_up, true, __ATOMIC_RELEASE);
	wl_wait();
	check(&ring, 0);
	return nothing;
}

int main(int argc, char **argv)
{
	struct ring first, second;
	pthread_t thread;

	wl_init(argc, argv);
	ring_make(&first, 4, 0);
	ring_make(&second, 4, IORING_SETUP_SINGLE_ISSUER);
	name(&first, 9);
	name(&second, 3);
	MUST0(pthread_create(&thread, NULL, work, NULL));
	WAIT_FOR(__atomic_load_n(&set_up, __ATOMIC_ACQUIRE), "the thread does not begin");
	wl_ready();
	if (wl_lose) {
		struct io_uring_rsrc_update update = { .offset = 9 };

		MUST(syscall(SYS_io_uring_register, first.fd, UNREGISTER_RING_FDS, &update, 1));
	}
	check(&first, 9);
	check(&second, 3);
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
