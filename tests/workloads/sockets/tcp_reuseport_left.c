/* Two sockets listen at one port (SO_REUSEPORT); the first has given that up since, which bars others from coming. */
#include "net.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage address;
	int first, second;

	wl_init(argc, argv);
	first = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_set(first, SOL_SOCKET, SO_REUSEPORT, 1);
	address = net_loopback(AF_INET, 0);
	MUST(bind(first, (struct sockaddr *)&address, net_size(AF_INET)));
	MUST(listen(first, 3));
	second = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_set(second, SOL_SOCKET, SO_REUSEPORT, 1);
	address = net_loopback(AF_INET, net_port(first));
	MUST(bind(second, (struct sockaddr *)&address, net_size(AF_INET)));
	MUST(listen(second, 4));
	net_set(first, SOL_SOCKET, SO_REUSEPORT, wl_lose);

	wl_ready();
	CHECK(net_get(first, SOL_SOCKET, SO_REUSEPORT) == 0, "the first shares its port again");
	CHECK(net_get(second, SOL_SOCKET, SO_REUSEPORT) == 1, "the second does not share its port any more");
	CHECK(net_port(first) == net_port(second), "ports %d and %d", net_port(first), net_port(second));
	wl_ok();
}
