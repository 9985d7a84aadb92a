// flags: --tcp-established
// peer: no, CRIU 4.2 does not know of handshakes that are not over
// differs: descriptor socket.IPPROTO_TCP.10, the window that is told changes with what arrives
// differs: descriptor socket.diag.tcp.snd_wnd, the same, seen by the peer
/* Handshakes that are not over (SYN_RECV), of connections that their clients hold for established: they have not sent
 * anything to a server that waits for that (TCP_DEFER_ACCEPT), or come to a full queue. */
#include "net.h"

enum { CLIENTS = 3 };

/* How many connections of a port are in the middle of the handshake. */
static int half_open(int family, int port)
{
	FILE *file = fopen(family == AF_INET ? "/proc/self/net/tcp" : "/proc/self/net/tcp6", "r");
	char line[512];
	int count = 0;

	CHECK(file, "cannot read the list of sockets");
	while (fgets(line, sizeof(line), file)) {
		unsigned at, state;

		if (sscanf(line, " %*d: %*[0-9A-F]:%x %*[0-9A-F]:%*x %x", &at, &state) == 2 && (int)at == port &&
		    state == TCP_SYN_RECV)
			count++;
	}
	fclose(file);
	return count;
}

static int slow_client(int family, int listener)
{
	int fd = MUST(socket(family, SOCK_STREAM, 0));

	net_connect(fd, family, net_port(listener));
	CHECK(net_state(fd) == TCP_ESTABLISHED, "it is not connected");
	return fd;
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int deferred[2], clients[2][CLIENTS], full, filler[2], served;
	char got[16] = "";

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		deferred[i] = net_bound(families[i], SOCK_STREAM, 0, 0);
		net_set(deferred[i], IPPROTO_TCP, TCP_DEFER_ACCEPT, 60);
		MUST(listen(deferred[i], 8));
		for (int j = 0; j < CLIENTS; j++)
			clients[i][j] = slow_client(families[i], deferred[i]);
		WAIT_FOR(half_open(families[i], net_port(deferred[i])) == CLIENTS, "the handshakes are over");
	}
	/* One waits, and there is no room for the other. */
	full = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	net_set(full, IPPROTO_TCP, TCP_DEFER_ACCEPT, 60);
	MUST(listen(full, 8));
	filler[0] = slow_client(AF_INET, full);
	filler[1] = slow_client(AF_INET, full);
	MUST(listen(full, 0));
	MUST(send(filler[0], "first", 5, 0));
	WAIT_FOR(net_ready(full) & POLLIN, "nobody waits");
	MUST(send(filler[1], "second", 6, 0));

	wl_ready();
	if (wl_lose)
		close(clients[1][2]);
	for (int i = 0; i < 2; i++) {
		for (int j = CLIENTS - 1; j >= 0; j--) {
			CHECK(!(net_ready(deferred[i]) & POLLIN), "somebody waits who has not spoken");
			CHECK(net_state(clients[i][j]) == TCP_ESTABLISHED, "%d %d: the client is in the state %d", i, j,
			      net_state(clients[i][j]));
			CHECK(send(clients[i][j], "now", 3, MSG_NOSIGNAL) == 3, "%d %d: cannot send: %s", i, j, strerror(errno));
			WAIT_FOR(net_ready(deferred[i]) & POLLIN, "the connection is not established");
			served = MUST(accept(deferred[i], NULL, NULL));
			CHECK(net_peer_port(served) == net_port(clients[i][j]), "%d %d: somebody else is accepted", i, j);
			CHECK(recv(served, got, 3, MSG_WAITALL) == 3 && memcmp(got, "now", 3) == 0, "%d %d: the data is another", i, j);
			MUST(send(served, "yes", 3, 0));
			CHECK(recv(clients[i][j], got, 3, MSG_WAITALL) == 3 && memcmp(got, "yes", 3) == 0, "%d %d: no answer", i, j);
			close(served);
		}
	}
	for (int j = 0; j < 2; j++) {
		const char *said = j ? "second" : "first";

		WAIT_FOR(net_ready(full) & POLLIN, "nobody waits at the full one");
		served = MUST(accept(full, NULL, NULL));
		CHECK(net_peer_port(served) == net_port(filler[j]), "somebody else is accepted at the full one");
		CHECK(recv(served, got, strlen(said), MSG_WAITALL) == (ssize_t)strlen(said) && memcmp(got, said, strlen(said)) == 0,
		      "the full one gets another %s", said);
		close(served);
	}
	wl_ok();
}
