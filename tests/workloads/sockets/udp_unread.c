// peer: no, CRIU 4.2 loses what was not read
/* UDP sockets with datagrams that nobody has read yet: each comes whole, in its order, from its sender. */
#include "net.h"

static void expect(int fd, int from, const char *text, size_t size)
{
	static char got[70000];
	struct sockaddr_storage sender;
	socklen_t length = sizeof(sender);
	ssize_t came = recvfrom(fd, got, sizeof(got), MSG_DONTWAIT, (struct sockaddr *)&sender, &length);

	CHECK(came == (ssize_t)size, "%zd bytes come, should be %zu: %s", came, size, came < 0 ? strerror(errno) : "");
	CHECK(!text || memcmp(got, text, size) == 0, "another text comes");
	CHECK(text || wl_differs(got, size, 5) == -1, "other bytes come, from %zd on", wl_differs(got, size, 5));
	CHECK(ntohs(((struct sockaddr_in *)&sender)->sin_port) == from, "it comes from port %d, should be %d",
	      ntohs(((struct sockaddr_in *)&sender)->sin_port), from);
}

int main(int argc, char **argv)
{
	static const int families[] = { AF_INET, AF_INET6 };
	int full[2], senders[2][2], any, connected, lite, mapped, lites[2];
	struct sockaddr_in6 all = { .sin6_family = AF_INET6 };
	struct sockaddr_in where = { .sin_family = AF_INET };
	static char large[60000];
	char byte;

	wl_init(argc, argv);
	wl_fill(large, sizeof(large), 5);
	for (int i = 0; i < 2; i++) {
		full[i] = net_bound(families[i], SOCK_DGRAM, 0, 0);
		for (int n = 0; n < 2; n++) {
			senders[i][n] = net_bound(families[i], SOCK_DGRAM, 0, 0);
			net_connect(senders[i][n], families[i], net_port(full[i]));
		}
		MUST(send(senders[i][0], "first", 5, 0));
		MUST(send(senders[i][1], "", 0, 0));
		MUST(send(senders[i][1], large, sizeof(large), 0));
		MUST(send(senders[i][0], "last", 4, 0));
	}
	/* At every address, from one peer, for both versions. */
	any = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(bind(any, (struct sockaddr *)&where, sizeof(where)));
	where.sin_port = htons(net_port(any));
	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	MUST(sendto(senders[0][0], "any", 3, 0, (struct sockaddr *)&where, sizeof(where)));
	connected = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	net_connect(connected, AF_INET, net_port(senders[0][1]));
	where.sin_port = htons(net_port(connected));
	MUST(sendto(senders[0][1], "peer", 4, 0, (struct sockaddr *)&where, sizeof(where)));
	mapped = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	MUST(bind(mapped, (struct sockaddr *)&all, sizeof(all)));
	where.sin_port = htons(net_port(mapped));
	MUST(sendto(senders[0][0], "mapped", 6, 0, (struct sockaddr *)&where, sizeof(where)));
	lite = net_bound(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE, 0);
	net_set(lite, IPPROTO_UDPLITE, 10, 20);
	for (int i = 0; i < 2; i++) {
		lites[i] = net_bound(families[i], SOCK_DGRAM, IPPROTO_UDPLITE, 0);
		net_connect(lites[i], families[i], net_port(lites[i]));
		MUST(send(lites[i], "light", 5, 0));
		MUST(send(lites[i], "", 0, 0));
	}

	wl_ready();
	if (wl_lose)
		MUST(recv(full[1], &byte, 1, 0));
	for (int i = 0; i < 2; i++) {
		expect(lites[i], net_port(lites[i]), "light", 5);
		expect(lites[i], net_port(lites[i]), "", 0);
		expect(full[i], net_port(senders[i][0]), "first", 5);
		expect(full[i], net_port(senders[i][1]), "", 0);
		expect(full[i], net_port(senders[i][1]), NULL, sizeof(large));
		expect(full[i], net_port(senders[i][0]), "last", 4);
		CHECK(recv(full[i], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "there is more");
		CHECK(net_get(full[i], SOL_SOCKET, SO_PEEK_OFF) == -1, "SO_PEEK_OFF");
	}
	CHECK(recv(any, &byte, 0, MSG_PEEK | MSG_DONTWAIT) == 0, "nothing at every address");
	expect(any, net_port(senders[0][0]), "any", 3);
	expect(connected, net_port(senders[0][1]), "peer", 4);
	CHECK(recv(mapped, large, sizeof(large), MSG_DONTWAIT) == 6, "nothing for both versions");
	CHECK(net_get(lite, IPPROTO_UDPLITE, 10) == 20, "UDP-Lite's coverage");
	wl_ok();
}
