// peer: no, CRIU 4.2 loses these options, and cannot bind without IP_FREEBIND
// differs: descriptor socket.IPPROTO_IP.52, a connection that has ended has an address and yet no port; nothing makes such
// differs: descriptor socket.IPPROTO_TCP.10, the window of a connection that has ended
// differs: descriptor socket.IPPROTO_TCP.2, the size of segments of a connection that has ended
// differs: descriptor socket.diag*, a connection that has ended has an address and yet no port, so that it is in no list
/* TCP sockets that are not connected: with an address that nobody has any more, shut down, after a connection. */
#include "net.h"

int main(int argc, char **argv)
{
	struct sockaddr_in strange = { .sin_family = AF_INET, .sin_port = htons(10000 + getpid() % 20000) };
	int far, gone, shut, v6, listener, over, served, port;
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	char byte;

	wl_init(argc, argv);
	/* The address stays when the permission to have it has gone. No two of these programs have one port. */
	inet_pton(AF_INET, "192.0.2.77", &strange.sin_addr);
	far = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_set(far, IPPROTO_IP, IP_FREEBIND, 1);
	MUST(bind(far, (struct sockaddr *)&strange, sizeof(strange)));
	inet_pton(AF_INET, "192.0.2.78", &strange.sin_addr);
	gone = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_set(gone, IPPROTO_IP, IP_FREEBIND, 1);
	MUST(bind(gone, (struct sockaddr *)&strange, sizeof(strange)));
	net_set(gone, IPPROTO_IP, IP_FREEBIND, 0);
	shut = MUST(socket(AF_INET, SOCK_STREAM, 0));
	shutdown(shut, SHUT_RDWR);
	v6 = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	net_set(v6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	net_set(v6, IPPROTO_IPV6, IPV6_TCLASS, 32);
	/* Both ends are closed in turn, the last one with an acknowledgement: it has nothing left but its end. */
	listener = net_bound(AF_INET, SOCK_STREAM, 0, 0);
	MUST(listen(listener, 1));
	over = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_connect(over, AF_INET, net_port(listener));
	served = MUST(accept(listener, NULL, NULL));
	close(served);
	CHECK(recv(over, &byte, 1, 0) == 0, "the other end is not closed");
	MUST(shutdown(over, SHUT_WR));
	WAIT_FOR((net_ready(over) & (POLLHUP | POLLRDHUP)) == (POLLHUP | POLLRDHUP), "the connection does not end");
	/* What is left of the connection would keep others from this port, but not its owner. */
	port = net_port(listener);

	wl_ready();
	if (wl_lose)
		close(shut), shut = MUST(socket(AF_INET, SOCK_STREAM, 0));
	CHECK(net_port(far) == ntohs(strange.sin_port) && net_get(far, IPPROTO_IP, IP_FREEBIND) == 1, "the far address");
	CHECK(net_port(gone) == ntohs(strange.sin_port) && net_get(gone, IPPROTO_IP, IP_FREEBIND) == 0, "the far address of before");
	CHECK((net_ready(shut) & POLLRDHUP) && recv(shut, &byte, 1, 0) == 0, "it is not shut down");
	CHECK(net_get(v6, IPPROTO_IPV6, IPV6_RECVPKTINFO) == 1 && net_get(v6, IPPROTO_IPV6, IPV6_TCLASS) == 32, "IPv6");
	CHECK(!(net_ready(v6) & POLLRDHUP), "it is shut down");
	CHECK((net_ready(over) & POLLRDHUP) && recv(over, &byte, 1, 0) == 0, "the end has been forgotten");
	CHECK(send(over, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "it can be sent to");
	CHECK(getsockopt(over, SOL_SOCKET, SO_PEERNAME, &peer, &size) == 0 && ntohs(peer.sin_port) == port, "its peer has been forgotten");
	CHECK(net_port(listener) == port, "the port is %d, was %d", net_port(listener), port);
	net_serves(listener, AF_INET, "the listening one");
	wl_ok();
}
