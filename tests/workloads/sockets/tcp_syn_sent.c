// flags: --tcp-established
// peer: no, CRIU 4.2 refuses connections that are not established
// differs: descriptor socket.diag.*, the attempts are counted anew
/* Connections that nobody has answered yet: to sockets that have no room. One gets room later, one is refused. A thread
 * waits in connect(2) for another. */
#include <pthread.h>

#include "net.h"

enum { ACCEPTED, REFUSED, BLOCKED, ALL };

static int ends[2][ALL], fillers[2][ALL][2], listeners[2][ALL], ports[2][ALL], answer = -2;

static void *connects(void *family)
{
	struct sockaddr_storage address = net_loopback((long)family, net_port(listeners[0][BLOCKED]));

	answer = connect(ends[0][BLOCKED], (struct sockaddr *)&address, net_size((long)family)) < 0 ? -errno : 0;
	return NULL;
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	pthread_t thread;
	char got[8];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < ALL; j++) {
			listeners[i][j] = net_full(families[i], &fillers[i][j][0]);
			ends[i][j] = MUST(socket(families[i], SOCK_STREAM | (j == BLOCKED ? 0 : SOCK_NONBLOCK), 0));
			if (j == BLOCKED && i == 0) {
				MUST0(pthread_create(&thread, NULL, connects, (void *)(long)families[i]));
				WAIT_FOR(net_state(ends[i][j]) == TCP_SYN_SENT, "it is not begun");
			} else if (j != BLOCKED) {
				net_begin(ends[i][j], families[i], net_port(listeners[i][j]));
				CHECK(net_state(ends[i][j]) == TCP_SYN_SENT, "the state is %d", net_state(ends[i][j]));
			}
			ports[i][j] = net_port(ends[i][j]);
		}

	wl_ready();
	if (wl_lose)
		close(ends[1][ACCEPTED]), ends[1][ACCEPTED] = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < ALL; j++) {
			if (j == BLOCKED && i == 1)
				continue;
			CHECK(net_state(ends[i][j]) == TCP_SYN_SENT, "%d %d: the state is %d", i, j, net_state(ends[i][j]));
			CHECK(net_port(ends[i][j]) == ports[i][j], "%d %d: the port is another", i, j);
			CHECK(net_ready(ends[i][j]) == 0, "%d %d: it is ready (%x)", i, j, net_ready(ends[i][j]));
			if (j == REFUSED)
				close(listeners[i][j]);
			else
				fillers[i][j][1] = MUST(accept(listeners[i][j], NULL, NULL));
		}
	for (int i = 0; i < 2; i++) {
		int served;

		WAIT_FOR(net_ready(ends[i][ACCEPTED]) & POLLOUT, "%d: it is not established", i);
		CHECK(net_get(ends[i][ACCEPTED], SOL_SOCKET, SO_ERROR) == 0, "%d: it fails", i);
		served = MUST(accept(listeners[i][ACCEPTED], NULL, NULL));
		CHECK(net_peer_port(served) == ports[i][ACCEPTED], "%d: the wrong one is accepted", i);
		MUST(send(ends[i][ACCEPTED], "hello", 5, 0));
		CHECK(recv(served, got, 5, MSG_WAITALL) == 5 && memcmp(got, "hello", 5) == 0, "%d: nothing arrives", i);
		WAIT_FOR(net_ready(ends[i][REFUSED]) & POLLERR, "%d: it is not refused", i);
		CHECK(net_get(ends[i][REFUSED], SOL_SOCKET, SO_ERROR) == ECONNREFUSED, "%d: the error is another", i);
	}
	MUST0(pthread_join(thread, NULL));
	CHECK(answer == 0, "connect(2) returns %s", strerror(-answer));
	wl_ok();
}
