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
// differs: thread *, they are at work
/* Two processes that count together over a TCP connection, without a pause. */
#include "net.h"

static void play(int fd, bool begins, bool stops)
{
	uint32_t number = 0;

	if (begins)
		MUST(send(fd, &number, sizeof(number), 0));
	for (uint32_t expected = begins ? 1 : 0;; expected += 2) {
		ssize_t got = recv(fd, &number, sizeof(number), MSG_WAITALL);

		if (got == 0)
			return;
		CHECK(got == sizeof(number), "recv: %zd, %s", got, strerror(errno));
		CHECK(number == expected, "%u comes, should be %u", number, expected);
		if (stops && wl_told_to_go()) {
			if (wl_lose)
				wl_fail("it stops as it was told");
			close(fd);
			return;
		}
		number++;
		MUST(send(fd, &number, sizeof(number), MSG_NOSIGNAL));
	}
}

int main(int argc, char **argv)
{
	int listener, fd;
	pid_t child;

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 1));
	child = MUST(fork());
	if (child == 0) {
		fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
		net_connect(fd, AF_INET, net_port(listener));
		close(listener);
		play(fd, true, false);
		_exit(0);
	}
	fd = MUST(accept(listener, NULL, NULL));
	wl_say("ready\n");
	play(fd, false, true);
	wl_join(child);
	wl_ok();
}
