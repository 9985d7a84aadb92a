// flags: --tcp-established
// peer: no, CRIU 4.2 loses what is left of a connection that has ended
// differs: descriptor socket.diag.*, what was counted in a connection that has ended
// differs: descriptor socket.diag, the port stays with it until it is closed, for it was bound again
// differs: descriptor socket.unsent, an end counts that was sent
// differs: descriptor socket.IPPROTO_TCP.*, sizes of a connection that has ended
// differs: descriptor socket.IPPROTO_IP.52, the range of ports that a connection had by its address
// differs: descriptor socket.tcp, what was agreed upon in a connection that has ended
/* Connections that have ended: in order or by a reset, with data that was not read, with errors that were not told. */
#include "net.h"

enum { ORDERLY, RESET, EMPTY_RESET, PIPE, MUCH, REFUSED, ALL };

static void reset(int fd)
{
	struct linger at_once = { 1, 0 };

	MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)));
	close(fd);
}

static int again(int fd, int family, int port)
{
	struct sockaddr_storage address = net_loopback(family, port);

	return connect(fd, (struct sockaddr *)&address, net_size(family));
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int ends[2][ALL], ports[2][ALL], late[2], filler;
	size_t sent[2] = { 0, 0 };
	char got[32];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		int listener = net_bound(families[i], SOCK_STREAM, 0, 0);

		late[i] = net_bound(families[i], SOCK_STREAM, 0, 0);
		MUST(listen(late[i], 1));
		MUST(listen(listener, 4));
		for (int j = 0; j < REFUSED; j++) {
			int pair[2];

			net_pair(listener, families[i], pair);
			ends[i][j] = pair[0];
			switch (j) {
			case ORDERLY:
				MUST(send(pair[1], "last words", 10, 0));
				MUST(shutdown(pair[0], SHUT_WR));
				CHECK(recv(pair[1], got, 1, 0) == 0, "no end");
				close(pair[1]);
				break;
			case RESET:
				MUST(send(pair[1], "last words", 10, 0));
				reset(pair[1]);
				break;
			case EMPTY_RESET:
				reset(pair[1]);
				break;
			case PIPE:
				MUST(send(pair[1], "last words", 10, 0));
				MUST(send(pair[0], "unread", 6, 0));
				MUST(shutdown(pair[1], SHUT_WR));
				WAIT_FOR(net_state(pair[0]) == TCP_CLOSE_WAIT, "no end");
				reset(pair[1]);
				break;
			case MUCH:
				for (int quiet = 0; quiet < 20; quiet++) {
					size_t before = sent[i];

					sent[i] = net_stuff(pair[1], i, sent[i]);
					quiet = sent[i] > before ? 0 : quiet;
					wl_sleep_ms(2);
				}
				MUST(ioctl(pair[0], FIONREAD, &sent[i]));
				reset(pair[1]);
				break;
			}
		}
		close(listener);
		ends[i][REFUSED] = MUST(socket(families[i], SOCK_STREAM, 0));
		/* A full socket that goes refuses who waits; nobody at all refuses at once, and the error is told then. */
		listener = net_full(families[i], &filler);
		fcntl(ends[i][REFUSED], F_SETFL, O_NONBLOCK);
		net_begin(ends[i][REFUSED], families[i], net_port(listener));
		close(listener);
		close(filler);
		fcntl(ends[i][REFUSED], F_SETFL, 0);
		for (int j = 0; j < ALL; j++) {
			WAIT_FOR(net_state(ends[i][j]) == TCP_CLOSE, "%d does not end", j);
			ports[i][j] = net_port(ends[i][j]);
		}
	}

	wl_ready();
	if (wl_lose)
		MUST(recv(ends[1][RESET], got, 1, 0));
	for (int i = 0; i < 2; i++) {
		for (int j = 0; j < ALL; j++) {
			CHECK(net_port(ends[i][j]) == ports[i][j], "%d %d: the port is another", i, j);
			CHECK(net_peer_port(ends[i][j]) < 0, "%d %d: it has a peer", i, j);
			CHECK(net_state(ends[i][j]) == TCP_CLOSE, "%d %d: the state is %d", i, j, net_state(ends[i][j]));
			CHECK((net_ready(ends[i][j]) & (POLLHUP | POLLRDHUP | POLLIN)) == (POLLHUP | POLLRDHUP | POLLIN), "%d %d: ready for %x",
			      i, j, net_ready(ends[i][j]));
			CHECK(!(net_ready(ends[i][j]) & POLLERR) == (j == ORDERLY), "%d %d: the error", i, j);
		}
		for (int j = ORDERLY; j < MUCH; j++)
			if (j != EMPTY_RESET)
				CHECK(recv(ends[i][j], got, sizeof(got), 0) == 10 && memcmp(got, "last words", 10) == 0, "%d %d: the data", i, j);
		net_expect(ends[i][MUCH], i, 0, sent[i], "much");
		CHECK(recv(ends[i][RESET], got, 1, 0) < 0 && errno == ECONNRESET, "%d: no reset behind the data", i);
		CHECK(recv(ends[i][MUCH], got, 1, 0) < 0 && errno == ECONNRESET, "%d: no reset behind much data", i);
		CHECK(net_get(ends[i][EMPTY_RESET], SOL_SOCKET, SO_ERROR) == ECONNRESET, "%d: no reset", i);
		CHECK(net_get(ends[i][PIPE], SOL_SOCKET, SO_ERROR) == EPIPE, "%d: no broken pipe", i);
		/* To connect once more is another way to be told, after which it is as new. */
		CHECK(again(ends[i][REFUSED], families[i], 9) < 0 && errno == ECONNREFUSED, "%d: it is not told that it was refused: %s", i,
		      strerror(errno));
		net_connect(ends[i][REFUSED], families[i], net_port(late[i]));
		CHECK(net_peer_port(ends[i][REFUSED]) == net_port(late[i]), "%d: it does not connect", i);
		for (int j = 0; j < REFUSED; j++) {
			CHECK(recv(ends[i][j], got, 1, 0) == 0, "%d %d: no end", i, j);
			CHECK(send(ends[i][j], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%d %d: it can be sent to", i, j);
		}
	}
	wl_ok();
}
