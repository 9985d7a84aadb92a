/* Pairs of Unix sockets: both ends here, shared with a child, one closed, or shut down; with options of their own. */
#include "unix.h"

static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };

int main(int argc, char **argv)
{
	int both[3][2], twins[3], alone[3][2], child_has[3][2], half[2][2], listless;
	struct timeval limit = { 3, 500000 };
	pid_t child;
	char got[16] = "";

	wl_init(argc, argv);
	for (int i = 0; i < 3; i++) {
		unix_pair(types[i], both[i]);
		twins[i] = MUST(dup(both[i][0]));
		unix_pair(types[i], alone[i]);
		close(alone[i][1]);
		unix_pair(types[i], child_has[i]);
	}
	net_set(both[0][0], SOL_SOCKET, SO_SNDBUF, 30000);
	net_set(both[0][0], SOL_SOCKET, SO_RCVBUF, 40000);
	net_set(both[1][1], SOL_SOCKET, SO_PASSCRED, 1);
	net_set(both[2][1], SOL_SOCKET, SO_PEEK_OFF, 0);
	MUST(setsockopt(both[0][1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
	MUST(fcntl(both[1][0], F_SETFL, O_NONBLOCK));
	MUST(fchmod(both[2][0], 0600));
	unix_pair(SOCK_STREAM, half[0]);
	MUST(shutdown(half[0][0], SHUT_WR));
	unix_pair(SOCK_SEQPACKET, half[1]);
	MUST(shutdown(half[1][1], SHUT_RDWR));
	listless = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	child = MUST(fork());
	if (child == 0) {
		for (int i = 0; i < 3; i++) {
			close(child_has[i][0]);
			net_expect(child_has[i][1], 1, 0, 4, "the child");
			MUST(send(child_has[i][1], "back", 4, 0));
		}
		_exit(0);
	}
	for (int i = 0; i < 3; i++)
		close(child_has[i][1]);

	wl_ready();
	if (wl_lose)
		MUST(shutdown(both[2][0], SHUT_WR));
	for (int i = 0; i < 3; i++) {
		char what[32];

		snprintf(what, sizeof(what), "pair %d", i);
		unix_is_empty(both[i][0], what);
		MUST(send(twins[i], "there", 5, MSG_NOSIGNAL));
		unix_gets(both[i][1], "there", what);
		unix_sends(both[i][1], "and back");
		unix_gets(twins[i], "and back", what);
		/* CRIU loses that a datagram socket had a peer: unix_unread looks at that. */
		if (types[i] != SOCK_DGRAM) {
			unix_ends(alone[i][0], "a lone end");
			CHECK(send(alone[i][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "gone: %s", strerror(errno));
		}
		for (int n = 0; n < 4; n++)
			got[n] = wl_byte(1, n);
		MUST(send(child_has[i][0], got, 4, MSG_NOSIGNAL));
		CHECK(recv(child_has[i][0], got, 4, 0) == 4 && memcmp(got, "back", 4) == 0, "'%s' from the child", got);
	}
	wl_join(child);
	unix_ends(half[0][1], "half an end");
	unix_sends(half[0][1], "the other way");
	unix_gets(half[0][0], "the other way", "half an end");
	CHECK(send(half[0][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "shut down");
	unix_ends(half[1][0], "a shut one");
	CHECK(send(half[1][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "shut down");
	CHECK(net_get(both[0][0], SOL_SOCKET, SO_SNDBUF) == 60000, "SO_SNDBUF");
	CHECK(net_get(both[0][0], SOL_SOCKET, SO_RCVBUF) == 80000, "SO_RCVBUF");
	CHECK(net_get(both[1][1], SOL_SOCKET, SO_PASSCRED) == 1, "SO_PASSCRED");
	CHECK(net_get(both[1][0], SOL_SOCKET, SO_PASSCRED) == 0, "SO_PASSCRED of the other");
	CHECK(MUST(fcntl(both[1][0], F_GETFL)) & O_NONBLOCK, "O_NONBLOCK");
	CHECK(net_ready(listless) & POLLHUP, "an unconnected one: %x", net_ready(listless));
	wl_ok();
}
