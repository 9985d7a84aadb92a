// flags: --tcp-established
// peer: no, CRIU 4.2 loses connections that wait to be accepted
/* Connections that wait to be accepted and have been reset by their clients: with a request, with nothing, behind an end. */
#include "net.h"

enum { REQUEST, NOTHING, ENDED, WHOLE, ALL };

static void reset(int fd)
{
	struct linger at_once = { 1, 0 };

	MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)));
	close(fd);
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int listeners[2], whole[2];
	char got[16];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		int clients[ALL];

		listeners[i] = net_bound(families[i], SOCK_STREAM, 0, 0);
		MUST(listen(listeners[i], ALL));
		for (int j = 0; j < ALL; j++) {
			clients[j] = MUST(socket(families[i], SOCK_STREAM, 0));
			net_connect(clients[j], families[i], net_port(listeners[i]));
			if (j != NOTHING)
				MUST(send(clients[j], "request", 7, 0));
			if (j == ENDED)
				MUST(shutdown(clients[j], SHUT_WR));
			if (j != WHOLE)
				reset(clients[j]);
		}
		whole[i] = clients[WHOLE];
	}

	wl_ready();
	if (wl_lose)
		close(MUST(accept(listeners[1], NULL, NULL)));
	for (int i = 0; i < 2; i++) {
		for (int j = 0; j < ALL; j++) {
			int served = accept(listeners[i], NULL, NULL), error = 0;

			CHECK(served >= 0, "%d %d: it does not wait: %s", i, j, strerror(errno));
			if (j != NOTHING) {
				memset(got, 0, sizeof(got));
				CHECK(recv(served, got, 7, 0) == 7 && strcmp(got, "request") == 0, "%d %d: the request is '%s'", i, j, got);
			}
			error = net_get(served, SOL_SOCKET, SO_ERROR);
			CHECK(error == (j == WHOLE ? 0 : j == ENDED ? EPIPE : ECONNRESET), "%d %d: the error is %s", i, j, strerror(error));
			CHECK(net_state(served) == (j == WHOLE ? TCP_ESTABLISHED : TCP_CLOSE), "%d %d: the state is %d", i, j,
			      net_state(served));
			if (j == WHOLE) {
				MUST(send(served, "answer", 6, 0));
				CHECK(recv(whole[i], got, 6, MSG_WAITALL) == 6, "%d: no answer", i);
			}
			close(served);
		}
	}
	wl_ok();
}
