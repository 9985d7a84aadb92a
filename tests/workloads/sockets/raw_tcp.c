// differs: process ns.net, the number of a namespace, of which the kernel gives each another
/* Raw sockets of the protocols TCP and UDP, in a network where nobody speaks: none of them is a socket of TCP or UDP. */
#include <sched.h>

#include "net.h"

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 }, protocols[2] = { IPPROTO_TCP, IPPROTO_UDP };
	int all[4];

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWNET));
	for (int i = 0; i < 4; i++) {
		all[i] = MUST(socket(families[i / 2], SOCK_RAW, protocols[i % 2]));
		net_set(all[i], SOL_SOCKET, SO_PRIORITY, i + 1);
	}
	wl_ready();
	if (wl_lose)
		net_set(all[2], SOL_SOCKET, SO_PRIORITY, 0);
	for (int i = 0; i < 4; i++) {
		CHECK(net_get(all[i], SOL_SOCKET, SO_PROTOCOL) == protocols[i % 2], "another protocol");
		CHECK(net_get(all[i], SOL_SOCKET, SO_TYPE) == SOCK_RAW, "another type");
		CHECK(net_get(all[i], SOL_SOCKET, SO_PRIORITY) == i + 1, "another priority");
	}
	wl_ok();
}
