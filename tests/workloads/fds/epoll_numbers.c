// peer: no, CRIU 4.2 registers the remaining number twice
/* An epoll's interests are known by number and open: the same file under two numbers, and one under a number that is closed. */
#include <sys/epoll.h>

#include "workload.h"

static int count(int epoll, int *sum)
{
	struct epoll_event got[8];
	int events = MUST(epoll_wait(epoll, got, 8, 0));

	*sum = 0;
	for (int i = 0; i < events; i++)
		*sum += got[i].data.u32;
	return events;
}

static void add(int epoll, int fd, int number)
{
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){ .events = EPOLLIN, .data.u32 = number }));
}

int main(int argc, char **argv)
{
	int epoll, ends[2], second, moved, sum, events;

	wl_init(argc, argv);
	MUST(pipe(ends));
	epoll = MUST(epoll_create1(0));
	second = MUST(dup(ends[0]));
	add(epoll, ends[0], 1);
	add(epoll, second, 10);
	/* Registered under `moved`, which is closed then, while other numbers keep the open alive: the interest stays. */
	moved = MUST(fcntl(ends[0], F_DUPFD, 60));
	add(epoll, moved, 100);
	MUST(close(moved));

	wl_ready();
	MUST(write(ends[1], "x", 1));
	if (wl_lose)
		MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, second, NULL));
	events = count(epoll, &sum);
	CHECK(events == 3 && sum == 111, "%d events come, of numbers that add up to %d", events, sum);
	MUST(epoll_ctl(epoll, EPOLL_CTL_DEL, second, NULL));
	events = count(epoll, &sum);
	CHECK(events == 2 && sum == 101, "after the removal of one number: %d events, %d", events, sum);
	CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, moved, NULL) < 0 && errno == EBADF, "a closed number can be removed");
	wl_ok();
}
