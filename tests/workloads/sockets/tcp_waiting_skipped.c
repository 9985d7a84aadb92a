// flags: --tcp-established
// checkpoint-flags: --skip-in-flight
// peer: no, CRIU 4.2 loses connections that wait to be accepted whatever is asked for
// differs: descriptor socket.*, who waits is given up, and told so
/* Connections that wait to be accepted, or that nobody has answered yet, and are given up: who waits is told, and can
 * connect again; who connects sees an end. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, full, filler, begun, client, served;
	char got[8] = "";

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 2));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_connect(client, AF_INET, net_port(listener));
	MUST(send(client, "early", 5, 0));
	full = net_full(AF_INET, &filler);
	begun = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	net_begin(begun, AF_INET, net_port(full));

	wl_ready();
	if (wl_lose)
		close(listener), listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
	fcntl(listener, F_SETFL, O_NONBLOCK);
	served = accept(listener, NULL, NULL);
	fcntl(listener, F_SETFL, 0);
	/* If the tree was not ended, nobody has been given up. */
	if (served >= 0) {
		CHECK(net_state(begun) == TCP_SYN_SENT, "the state is %d", net_state(begun));
		CHECK(recv(served, got, sizeof(got), 0) == 5 && strcmp(got, "early") == 0, "'%s' arrives", got);
	} else {
		CHECK(recv(begun, got, 1, 0) == 0, "there is no end where nobody had answered");
		CHECK((send(client, "?", 1, MSG_NOSIGNAL) < 0 || recv(client, got, 1, 0) < 0) && errno == ECONNRESET,
		      "the client is not told: %s", strerror(errno));
	}
	net_serves(listener, AF_INET, "the listener");
	wl_ok();
}
