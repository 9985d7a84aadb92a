/* An epoll with several kinds of files: interests, their data, readiness before and after. */
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "workload.h"

/* The events of one wait, by the number in their data; the sum of the numbers that are ready. */
static int ready(int epoll, uint32_t *events)
{
	struct epoll_event got[16];
	int count = MUST(epoll_wait(epoll, got, 16, 0)), sum = 0;

	for (int i = 0; i < count; i++) {
		uint64_t number = got[i].data.u64 & 0xff;

		CHECK(got[i].data.u64 >> 8 == 0xabcdef0123, "the data of an event are %#lx", (uint64_t)got[i].data.u64);
		events[number] = got[i].events;
		sum += 1 << number;
	}
	return sum;
}

static void add(int epoll, int fd, uint32_t events, int number)
{
	struct epoll_event event = { .events = events, .data.u64 = 0xabcdef0123ull << 8 | number };

	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int main(int argc, char **argv)
{
	int epoll, pipes[3][2], counter, empty;
	uint32_t events[16] = { 0 };

	wl_init(argc, argv);
	epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
	for (int i = 0; i < 3; i++)
		MUST(pipe(pipes[i]));
	counter = MUST(eventfd(1, 0));
	empty = MUST(epoll_create1(0));
	add(epoll, pipes[0][0], EPOLLIN, 0);
	add(epoll, pipes[1][0], EPOLLIN | EPOLLRDHUP | EPOLLPRI, 1);
	add(epoll, pipes[2][1], EPOLLOUT, 2);
	add(epoll, counter, EPOLLIN | EPOLLOUT, 3);
	MUST(write(pipes[1][1], "x", 1));

	wl_ready();
	if (wl_lose)
		MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, pipes[0][0], NULL));
	CHECK(ready(epoll, events) == (1 << 1 | 1 << 2 | 1 << 3), "ready are %#x", ready(epoll, events));
	CHECK(events[1] == EPOLLIN && events[2] == EPOLLOUT && events[3] == (EPOLLIN | EPOLLOUT), "events are %#x %#x %#x", events[1], events[2], events[3]);
	MUST(write(pipes[0][1], "y", 1));
	CHECK(ready(epoll, events) & 1, "new input is not seen");
	MUST(close(pipes[1][1]));
	ready(epoll, events);
	CHECK(events[1] & EPOLLHUP, "a hang-up is not seen");
	MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, counter, NULL));
	CHECK(ready(epoll, events) == (1 << 0 | 1 << 1 | 1 << 2), "ready after a removal are %#x", ready(epoll, events));
	add(epoll, counter, EPOLLIN, 3);
	CHECK(fcntl(epoll, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
	add(empty, counter, EPOLLIN, 4);
	CHECK(ready(empty, events) == 1 << 4, "the empty epoll cannot be used");
	wl_ok();
}
