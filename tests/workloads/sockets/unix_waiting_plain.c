/* Connections that wait to be accepted and have not sent anything. */
#include "unix.h"

int main(int argc, char **argv)
{
	int listener, clients[2], served;
	char *path;

	wl_init(argc, argv);
	path = strdup(wl_path("listener"));
	listener = unix_bound(SOCK_STREAM, path);
	MUST(listen(listener, 2));
	for (int i = 0; i < 2; i++) {
		clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(unix_connect(clients[i], path));
	}

	wl_ready();
	MUST(fcntl(listener, F_SETFL, O_NONBLOCK));
	if (wl_lose)
		MUST(accept(listener, NULL, NULL));
	/* CRIU may change their order. */
	for (int i = 0; i < 2; i++)
		unix_sends(clients[i], "hello");
	for (int i = 0; i < 2; i++) {
		served = accept(listener, NULL, NULL);
		CHECK(served >= 0, "nobody waits: %s", strerror(errno));
		unix_gets(served, "hello", "who waited");
		unix_sends(served, "welcome");
	}
	for (int i = 0; i < 2; i++)
		unix_gets(clients[i], "welcome", "a client");
	wl_ok();
}
