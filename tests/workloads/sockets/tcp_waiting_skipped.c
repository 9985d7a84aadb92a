// flags: --tcp-established
// checkpoint-flags: --skip-in-flight
// peer: no, CRIU 4.2 loses connections that wait to be accepted whatever is asked for
// differs: descriptor socket.*, who waits is given up, and told so
/* A connection that waits to be accepted and is given up: its client is told, and can connect again. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, client, served;
	char got[8] = "";

	wl_init(argc, argv);
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 2));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_connect(client, AF_INET, net_port(listener));
	MUST(send(client, "early", 5, 0));

	wl_ready();
	if (wl_lose)
		close(listener), listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
	fcntl(listener, F_SETFL, O_NONBLOCK);
	served = accept(listener, NULL, NULL);
	fcntl(listener, F_SETFL, 0);
	/* If the tree was not ended, nobody has been given up. */
	if (served >= 0) {
		CHECK(recv(served, got, sizeof(got), 0) == 5 && strcmp(got, "early") == 0, "'%s' arrives", got);
	} else {
		CHECK((send(client, "?", 1, MSG_NOSIGNAL) < 0 || recv(client, got, 1, 0) < 0) && errno == ECONNRESET,
		      "the client is not told: %s", strerror(errno));
	}
	net_serves(listener, AF_INET, "the listener");
	wl_ok();
}
