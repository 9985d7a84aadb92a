// flags: --tcp-established
// criu-flags: --network-lock nftables
// differs: descriptor socket.IPPROTO_TCP.10, they are at work
// differs: descriptor socket.SOL_SOCKET.8, they are at work
// differs: descriptor socket.SOL_SOCKET.7, they are at work
// differs: descriptor socket.diag.received, they are at work
// differs: descriptor socket.diag.sent, they are at work
// differs: descriptor socket.diag.timer, they are at work
// differs: descriptor socket.diag.memory.*, they are at work
// differs: descriptor socket.diag.tcp.notsent_bytes, they are at work
// differs: descriptor socket.ready, they are at work
// differs: descriptor socket.unread, they are at work
// differs: descriptor socket.unsent, they are at work
/* A process outside of the tree counts with one in it over TCP, all the time. It is never to see an end or a reset. */
#include "net.h"

#define COUNT 2

/* The harness knows the processes of the workload by their environment. */
static void leave_the_family(void)
{
	for (char **one = environ; *one; one++)
		memset(*one, 0, strlen(*one));
}

/* The process outside, until it is told to go or nobody is there any more who could want it. */
static void ask(int fd)
{
	struct pollfd answer = { .fd = fd, .events = POLLIN };

	for (uint32_t number = 0, got;; number += 2) {
		ssize_t came;

		MUST(send(fd, &number, sizeof(number), MSG_NOSIGNAL));
		while (MUST(poll(&answer, 1, 100)) == 0)
			if (access(wl_harness, F_OK) < 0 || access(wl_dir, F_OK) < 0)
				_exit(0);
		came = recv(fd, &got, sizeof(got), MSG_WAITALL);
		if (came == 0 && wl_told_to_go())
			_exit(0);
		CHECK(came == sizeof(got), "the peer outside gets %zd bytes: %s", came, came ? strerror(errno) : "the end");
		CHECK(got == number + 1, "the peer outside gets %u after %u", got, number);
		wl_sleep_ms(1);
	}
}

static void answer(const int *ends)
{
	uint32_t number, expected[COUNT] = { 0 };
	struct pollfd asked[COUNT];

	for (int i = 0; i < COUNT; i++)
		asked[i] = (struct pollfd){ .fd = ends[i], .events = POLLIN };
	while (!wl_told_to_go()) {
		if (poll(asked, COUNT, 100) <= 0)
			continue;
		for (int i = 0; i < COUNT; i++) {
			if (!asked[i].revents)
				continue;
			CHECK(recv(ends[i], &number, sizeof(number), MSG_WAITALL) == sizeof(number), "the peer is gone");
			CHECK(number == expected[i], "%u comes, should be %u", number, expected[i]);
			expected[i] += 2;
			number++;
			CHECK(send(ends[i], &number, sizeof(number), MSG_NOSIGNAL) == sizeof(number), "the peer takes nothing");
		}
	}
}

int main(int argc, char **argv)
{
	static const int families[COUNT] = { AF_INET, AF_INET6 };
	struct linger none = { .l_onoff = 1 };
	char byte;
	int ends[COUNT][2], ours[COUNT], away[2];

	wl_init(argc, argv);
	for (int i = 0; i < COUNT; i++) {
		int listener = net_bound(families[i], SOCK_STREAM, 0, 0);

		MUST(listen(listener, 1));
		net_pair(listener, families[i], ends[i]);
		close(listener);
	}
	MUST(pipe(away));
	for (int i = 0; i < COUNT; i++) {
		/* A child of a child that has ended has no place in the tree. */
		if (MUST(fork()) == 0) {
			if (MUST(fork()) == 0) {
				MUST(setsid());
				leave_the_family();
				close(away[0]);
				close(away[1]);
				for (int other = 0; other < COUNT; other++) {
					close(ends[other][1]);
					if (other != i)
						close(ends[other][0]);
				}
				ask(ends[i][0]);
			}
			_exit(0);
		}
		MUST(wait(NULL));
	}
	for (int i = 0; i < COUNT; i++) {
		close(ends[i][0]);
		ours[i] = ends[i][1];
	}
	/* Nobody outside is taken for one of us any more. */
	close(away[1]);
	MUST(read(away[0], &byte, 1));
	close(away[0]);
	wl_say("ready\n");
	answer(ours);
	if (wl_lose) {
		MUST(setsockopt(ours[1], SOL_SOCKET, SO_LINGER, &none, sizeof(none)));
		close(ours[1]);
		wl_sleep_ms(1000);
	}
	for (int i = 0; i < COUNT; i++) {
		char rest[64];

		/* What is not read would make a reset of the end. */
		shutdown(ours[i], SHUT_WR);
		while (recv(ours[i], rest, sizeof(rest), 0) > 0)
			;
	}
	wl_ok();
}
