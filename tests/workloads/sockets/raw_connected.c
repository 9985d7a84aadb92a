// peer: no, CRIU 4.2 loses the peer
/* Raw sockets that are connected: the peer has no port, so that getpeername(2) does not tell it. */
#include "net.h"

#define PROTOCOL 254

int main(int argc, char **argv)
{
	static const int families[] = { AF_INET, AF_INET6 };
	int fds[2], others[2];
	char got[64];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		fds[i] = MUST(socket(families[i], SOCK_RAW | SOCK_NONBLOCK, PROTOCOL));
		net_connect(fds[i], families[i], 0);
	}

	wl_ready();
	if (wl_lose)
		close(fds[1]), fds[1] = MUST(socket(AF_INET6, SOCK_RAW, PROTOCOL));
	for (int i = 0; i < 2; i++) {
		others[i] = MUST(socket(families[i], SOCK_RAW | SOCK_NONBLOCK, PROTOCOL));
		CHECK(send(fds[i], "hello", 5, 0) == 5, "%d: it is not connected: %s", i, strerror(errno));
		CHECK(recv(others[i], got, sizeof(got), 0) >= 5, "%d: nothing arrives", i);
	}
	wl_ok();
}
