// peer: no, CRIU 4.2 knows no io_uring
/* Two io_urings from which threads of the kernel take requests: one is bound to a processor, of the other one thread alone may submit. */
#include <sched.h>

#include "ring.h"

static void poll_submit(struct ring *ring, unsigned wait)
{
	unsigned flags = IORING_ENTER_GETEVENTS;

	ring_put(ring, ring->params.sq_off.tail, ring->given);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (ring_word(ring, ring->params.sq_off.flags) & IORING_SQ_NEED_WAKEUP)
		flags |= IORING_ENTER_SQ_WAKEUP;
	MUST(syscall(SYS_io_uring_enter, ring->fd, 0, wait, flags, NULL, 0));
	WAIT_FOR(ring_word(ring, ring->params.sq_off.head) == ring->given, "the thread of the kernel takes nothing");
}

static void poll_make(struct ring *ring, unsigned flags, unsigned idle, unsigned cpu)
{
	struct io_uring_params *params = &ring->params;
	size_t size;

	memset(ring, 0, sizeof(*ring));
	params->flags = flags | IORING_SETUP_SQPOLL;
	params->sq_thread_idle = idle;
	params->sq_thread_cpu = cpu;
	ring->fd = MUST(syscall(SYS_io_uring_setup, 8, params));
	size = params->sq_off.array + params->sq_entries * 4;
	ring->rings = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING));
	size = params->sq_entries * sizeof(struct io_uring_sqe);
	ring->entries = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES));
}

static void turn(struct ring *ring, uint64_t rounds)
{
	for (uint64_t tag = 1; tag <= rounds; tag++) {
		ring_give(ring, tag);
		ring_give(ring, tag + 1);
		poll_submit(ring, 2);
		ring_take(ring, tag, 0);
		ring_take(ring, tag + 1, 0);
	}
}

static void check(struct ring *ring, int fd)
{
	char text[9] = "";

	ring_take(ring, 70, 0);
	ring_take(ring, 71, 0);
	CHECK(ring_unread(ring) == 0, "a completion from nowhere");
	ring_read(ring, 80, fd, text, 8, 10);
	poll_submit(ring, 1);
	ring_take(ring, 80, 8);
	CHECK(strcmp(text, "abcdefgh") == 0, "read '%s'", text);
	turn(ring, 20);
}

/* The affinity of the thread that takes the requests. */
static bool is_bound(struct ring *ring)
{
	char path[64], line[128];
	cpu_set_t set;
	FILE *info;
	int tid = 0;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", ring->fd);
	while (tid <= 0) {
		info = fopen(path, "re");
		CHECK(info, "%s: %s", path, strerror(errno));
		while (fgets(line, sizeof(line), info))
			sscanf(line, "SqThread: %d", &tid);
		fclose(info);
	}
	MUST(sched_getaffinity(tid, sizeof(set), &set));
	return CPU_COUNT(&set) == 1 && CPU_ISSET(0, &set);
}

int main(int argc, char **argv)
{
	struct ring bound, own;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(write(fd, "0123456789abcdefghijklmnopqrstuv", 32));
	poll_make(&bound, IORING_SETUP_SQ_AFF, 10, 0);
	poll_make(&own, IORING_SETUP_SINGLE_ISSUER, 50, 0);
	turn(&bound, 500);
	turn(&own, 300);
	for (int which = 0; which < 2; which++) {
		struct ring *ring = which ? &own : &bound;

		ring_give(ring, 70);
		ring_give(ring, 71);
		poll_submit(ring, 2);
	}
	wl_ready();
	if (wl_lose)
		ring_put(&own, own.params.cq_off.tail, own.taken);
	CHECK(is_bound(&bound), "the thread of the kernel is not bound to its processor");
	check(&bound, fd);
	check(&own, fd);
	wl_ok();
}
