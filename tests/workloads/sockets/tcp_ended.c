// flags: --tcp-established
// peer: no, CRIU 4.2 refuses an attempt that was refused
// differs: descriptor socket.diag*, what was counted in a connection that has ended, and the port that it had no more
// differs: descriptor socket.SOL_SOCKET.28, whom an attempt was made to connect to that was refused
// differs: descriptor socket.unsent, an end counts that was sent
// differs: descriptor socket.IPPROTO_TCP.*, sizes of a connection that has ended
// differs: descriptor socket.IPPROTO_IP.52, the range of ports that a connection had by its address
// differs: descriptor socket.tcp, what was agreed upon in a connection that has ended
/* Connections that have ended with nothing left but their names, closed in turn by either side, beside a socket that listens
 * at their port without sharing it; and an attempt that was refused, after which the same socket connects. */
#include "net.h"

enum { V4, V6, MAPPED, ALL };

struct names {
	struct sockaddr_storage own, peer;
};

/* Also of a connection that has ended. */
static struct names names_of(int fd)
{
	struct names names;
	socklen_t size = sizeof(names.own);

	memset(&names, 0, sizeof(names));
	MUST(getsockname(fd, (struct sockaddr *)&names.own, &size));
	size = names.own.ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &names.peer, &size) == 0, "who was the peer: %s", strerror(errno));
	return names;
}

int main(int argc, char **argv)
{
	int listeners[ALL], ends[ALL][2][2], refused, gone, port;
	struct names names[ALL][2][2];
	struct sockaddr_storage address;
	char byte;

	wl_init(argc, argv);
	for (int i = 0; i < ALL; i++) {
		struct sockaddr_in6 any = { .sin6_family = AF_INET6 };
		int client = i == V6 ? AF_INET6 : AF_INET;

		if (i == MAPPED) {
			listeners[i] = MUST(socket(AF_INET6, SOCK_STREAM, 0));
			MUST(bind(listeners[i], (struct sockaddr *)&any, sizeof(any)));
		} else {
			listeners[i] = net_bound(client, SOCK_STREAM, 0, 0);
		}
		MUST(listen(listeners[i], 4));
		for (int first = 0; first < 2; first++) {
			int *pair = ends[i][first];

			net_pair(listeners[i], client, pair);
			MUST(shutdown(pair[first], SHUT_WR));
			CHECK(recv(pair[!first], &byte, 1, 0) == 0, "no end");
			MUST(shutdown(pair[!first], SHUT_WR));
			for (int j = 0; j < 2; j++) {
				WAIT_FOR(net_state(pair[j]) == TCP_CLOSE, "it does not end");
				names[i][first][j] = names_of(pair[j]);
			}
		}
	}
	/* A port that nobody listens at. */
	gone = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	port = net_port(gone);
	close(gone);
	refused = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	address = net_loopback(AF_INET, port);
	if (connect(refused, (struct sockaddr *)&address, net_size(AF_INET)) < 0 && errno == EINPROGRESS) {
		WAIT_FOR(net_ready(refused) & POLLERR, "it is not refused");
		CHECK(net_get(refused, SOL_SOCKET, SO_ERROR) == ECONNREFUSED, "it is not refused");
	}

	wl_ready();
	if (wl_lose) {
		close(ends[V6][0][1]);
		ends[V6][0][1] = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	}
	for (int i = 0; i < ALL; i++)
		for (int first = 0; first < 2; first++)
			for (int j = 0; j < 2; j++) {
				int fd = ends[i][first][j];
				struct names now = names_of(fd);

				CHECK(memcmp(&now, &names[i][first][j], sizeof(now)) == 0, "%d %d %d: the names are others", i, first, j);
				CHECK(net_peer_port(fd) < 0, "%d %d %d: it has a peer", i, first, j);
				CHECK(net_state(fd) == TCP_CLOSE, "%d %d %d: the state is %d", i, first, j, net_state(fd));
				CHECK(!(net_ready(fd) & POLLERR), "%d %d %d: it has an error", i, first, j);
				CHECK(recv(fd, &byte, 1, 0) == 0, "%d %d %d: it has no end", i, first, j);
				CHECK(send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%d %d %d: it can be sent to", i, first, j);
			}
	net_serves(listeners[V4], AF_INET, "IPv4");
	net_serves(listeners[V6], AF_INET6, "IPv6");
	net_serves(listeners[MAPPED], AF_INET, "both");
	/* It may be told once more that it was refused. */
	address = net_loopback(AF_INET, net_port(listeners[V4]));
	fcntl(refused, F_SETFL, 0);
	if (connect(refused, (struct sockaddr *)&address, net_size(AF_INET)) < 0) {
		CHECK(errno == ECONNABORTED, "who was refused cannot connect: %s", strerror(errno));
		MUST(connect(refused, (struct sockaddr *)&address, net_size(AF_INET)));
	}
	CHECK(net_peer_port(refused) == net_port(listeners[V4]), "who was refused is not connected");
	wl_ok();
}
