// peer: no, CRIU 4.2 lets the interruption show (EINTR)
/* epoll_wait without a time limit. The kernel itself does not restart this call: the engine must, unless a signal is due. */
#include <sys/epoll.h>

#include "blocked.h"

static int ends[2], epoll;

static long call(void)
{
	struct epoll_event event = { 0 };
	long result = epoll_wait(epoll, &event, 1, -1);

	return result == 1 && event.data.u64 != 0xabcdef0123456789 ? -2 : result;
}

static void release(void)
{
	MUST(write(ends[1], "x", 1));
}

int main(int argc, char **argv)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0xabcdef0123456789 };

	wl_init(argc, argv);
	MUST(pipe(ends));
	epoll = MUST(epoll_create1(0));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
	blocked_main((struct blocked_call){ .number = SYS_epoll_wait, .call = call, .release = release, .result = 1 });
}
