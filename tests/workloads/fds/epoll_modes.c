/* Edge-triggered and one-shot interests: a one-shot that has fired stays silent until it is armed again. */
#include <sys/epoll.h>

#include "workload.h"

static int fires(int epoll)
{
	struct epoll_event got = { 0 };

	return MUST(epoll_wait(epoll, &got, 1, 0)) ? got.data.fd : -1;
}

static void control(int epoll, int how, int fd, uint32_t events)
{
	MUST(epoll_ctl(epoll, how, fd, &(struct epoll_event){ .events = events, .data.fd = fd }));
}

int main(int argc, char **argv)
{
	int edge, fired, armed, exclusive, pipes[4][2];

	wl_init(argc, argv);
	for (int i = 0; i < 4; i++)
		MUST(pipe(pipes[i]));
	edge = MUST(epoll_create1(0));
	fired = MUST(epoll_create1(0));
	armed = MUST(epoll_create1(0));
	exclusive = MUST(epoll_create1(0));
	control(edge, EPOLL_CTL_ADD, pipes[0][0], EPOLLIN | EPOLLET);
	control(fired, EPOLL_CTL_ADD, pipes[1][0], EPOLLIN | EPOLLONESHOT);
	control(armed, EPOLL_CTL_ADD, pipes[2][0], EPOLLIN | EPOLLONESHOT | EPOLLET);
	control(exclusive, EPOLL_CTL_ADD, pipes[3][0], EPOLLIN | EPOLLEXCLUSIVE);
	MUST(write(pipes[1][1], "x", 1));
	CHECK(fires(fired) == pipes[1][0], "the one-shot does not fire the first time");

	wl_ready();
	if (wl_lose)
		control(fired, EPOLL_CTL_MOD, pipes[1][0], EPOLLIN);
	CHECK(fires(edge) == -1 && fires(armed) == -1 && fires(exclusive) == -1, "something fires though nothing has come");
	CHECK(fires(fired) == -1, "the one-shot that had fired fires again");
	control(fired, EPOLL_CTL_MOD, pipes[1][0], EPOLLIN | EPOLLONESHOT);
	CHECK(fires(fired) == pipes[1][0], "the one-shot does not fire when armed again");
	MUST(write(pipes[0][1], "x", 1));
	CHECK(fires(edge) == pipes[0][0] && fires(edge) == -1, "the edge is not seen, or seen twice");
	MUST(write(pipes[2][1], "x", 1));
	CHECK(fires(armed) == pipes[2][0] && fires(armed) == -1, "the armed one-shot does not fire, or fires twice");
	MUST(write(pipes[3][1], "x", 1));
	CHECK(fires(exclusive) == pipes[3][0] && fires(exclusive) == pipes[3][0], "the exclusive interest does not fire");
	CHECK(epoll_ctl(exclusive, EPOLL_CTL_MOD, pipes[3][0], &(struct epoll_event){ .events = EPOLLIN }) < 0 && errno == EINVAL,
	      "the exclusive interest is no longer exclusive");
	wl_ok();
}
