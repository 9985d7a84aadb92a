/* An epoll that watches an epoll that watches a pipe; shared with a child. */
#include <sys/epoll.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct epoll_event event = { .events = EPOLLIN }, got;
	int inner, middle, outer, ends[2];
	pid_t child;

	wl_init(argc, argv);
	MUST(pipe(ends));
	/* Numbers in the reverse order of their nesting. */
	outer = MUST(epoll_create1(0));
	middle = MUST(epoll_create1(0));
	inner = MUST(epoll_create1(0));
	event.data.u32 = 1;
	MUST(epoll_ctl(inner, EPOLL_CTL_ADD, ends[0], &event));
	event.data.u32 = 2;
	MUST(epoll_ctl(middle, EPOLL_CTL_ADD, inner, &event));
	event.data.u32 = 3;
	MUST(epoll_ctl(outer, EPOLL_CTL_ADD, middle, &event));
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(epoll_wait(outer, &got, 1, 10) == 1 && got.data.u32 == 3, "the child's outer one does not fire");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(epoll_ctl(middle, EPOLL_CTL_DEL, inner, NULL));
	CHECK(epoll_wait(outer, &got, 1, 0) == 0, "the outer one fires too early");
	MUST(write(ends[1], "x", 1));
	CHECK(epoll_wait(inner, &got, 1, 0) == 1 && got.data.u32 == 1, "the inner one does not fire");
	CHECK(epoll_wait(middle, &got, 1, 0) == 1 && got.data.u32 == 2, "the middle one does not fire");
	CHECK(epoll_wait(outer, &got, 1, 0) == 1 && got.data.u32 == 3, "the outer one does not fire");
	wl_join(child);
	wl_ok();
}
