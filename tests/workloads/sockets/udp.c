/* UDP sockets with addresses and peers, shut down or not, with options; two that are each other's peer. */
#include "net.h"

int main(int argc, char **argv)
{
	int bound, v6, one, two, shut, group[2], ports[6];
	char got[16] = "";

	wl_init(argc, argv);
	bound = net_bound(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0, 0);
	net_set(bound, SOL_SOCKET, SO_BROADCAST, 1);
	net_set(bound, SOL_SOCKET, SO_RCVBUF, 60000);
	net_set(bound, IPPROTO_IP, IP_PKTINFO, 1);
	v6 = net_bound(AF_INET6, SOCK_DGRAM, 0, 0);
	one = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	two = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	net_connect(one, AF_INET, net_port(two));
	net_connect(two, AF_INET, net_port(one));
	shut = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	net_connect(shut, AF_INET, net_port(bound));
	MUST(shutdown(shut, SHUT_WR));
	for (int i = 0; i < 2; i++) {
		struct sockaddr_storage address = net_loopback(AF_INET, i ? net_port(group[0]) : 0);

		group[i] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
		net_set(group[i], SOL_SOCKET, SO_REUSEADDR, 1);
		MUST(bind(group[i], (struct sockaddr *)&address, net_size(AF_INET)));
	}
	/* Who came in stays in. */
	net_set(group[0], SOL_SOCKET, SO_REUSEADDR, 0);
	ports[0] = net_port(bound), ports[1] = net_port(v6), ports[2] = net_port(one), ports[3] = net_port(two);
	ports[4] = net_port(shut), ports[5] = net_port(group[0]);

	wl_ready();
	if (wl_lose)
		net_connect(two, AF_INET, ports[0]);
	CHECK(net_port(bound) == ports[0] && net_port(v6) == ports[1] && net_port(one) == ports[2] &&
		      net_port(two) == ports[3] && net_port(shut) == ports[4],
	      "a port is another");
	CHECK(net_peer_port(bound) == -1 && net_peer_port(one) == ports[3] && net_peer_port(two) == ports[2] &&
		      net_peer_port(shut) == ports[0],
	      "a peer is another: %d %d", net_peer_port(one), net_peer_port(two));
	CHECK(net_get(bound, SOL_SOCKET, SO_BROADCAST) == 1 && net_get(one, SOL_SOCKET, SO_BROADCAST) == 0, "SO_BROADCAST");
	CHECK(net_get(bound, SOL_SOCKET, SO_RCVBUF) == 120000, "SO_RCVBUF is %d", net_get(bound, SOL_SOCKET, SO_RCVBUF));
	CHECK(net_get(bound, IPPROTO_IP, IP_PKTINFO) == 1, "IP_PKTINFO");
	CHECK(recv(bound, got, 1, 0) == -1 && errno == EAGAIN, "it is not as empty as it was");
	MUST(send(one, "there", 6, 0));
	CHECK(recv(two, got, sizeof(got), 0) == 6 && strcmp(got, "there") == 0, "'%s' arrives", got);
	MUST(send(two, "back", 5, 0));
	CHECK(recv(one, got, sizeof(got), 0) == 5 && strcmp(got, "back") == 0, "'%s' comes back", got);
	CHECK(send(shut, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "it sends although that is shut down");
	CHECK(net_port(group[0]) == ports[5] && net_port(group[1]) == ports[5], "they do not share the port");
	CHECK(net_get(group[0], SOL_SOCKET, SO_REUSEADDR) == 0 && net_get(group[1], SOL_SOCKET, SO_REUSEADDR) == 1,
	      "SO_REUSEADDR");
	wl_ok();
}
