// refused: a datagram has been begun
// peer: no, what is refused is not asked of it
/* A UDP socket in the middle of a datagram. */
#include "net.h"

int main(int argc, char **argv)
{
	int receiver, sender;
	char got[16] = "";

	wl_init(argc, argv);
	receiver = net_bound(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0, 0);
	sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	net_connect(sender, AF_INET, net_port(receiver));
	MUST(send(sender, "half ", 5, MSG_MORE));

	wl_ready();
	if (wl_lose)
		close(sender), sender = MUST(socket(AF_INET, SOCK_DGRAM, 0)), net_connect(sender, AF_INET, net_port(receiver));
	MUST(send(sender, "whole", 5, 0));
	CHECK(recv(receiver, got, sizeof(got), 0) == 10 && strcmp(got, "half whole") == 0, "'%s' arrives", got);
	wl_ok();
}
