// flags: --tcp-established
// peer: no, CRIU 4.2 loses connections that wait to be accepted
// differs: descriptor socket.IPPROTO_TCP.10, the window that is told changes with what arrives
// differs: descriptor socket.diag.tcp.snd_wnd, the same, seen by the peer
/* Connections that wait to be accepted: with requests, small and large, with nothing, ended, closed; at IPv4 and IPv6, where
 * ports are shared, and more than may wait since. */
#include "net.h"

enum { WAITING = 5, LARGE = 50000 };

struct hall {
	int family, listener, clients[WAITING], ports[WAITING];
};

static void fill(struct hall *hall, int listener, int family, unsigned seed)
{
	uint8_t bytes[LARGE];

	hall->family = family;
	hall->listener = listener;
	for (int i = 0; i < WAITING; i++) {
		hall->clients[i] = MUST(socket(family, SOCK_STREAM, 0));
		net_connect(hall->clients[i], family, net_port(listener));
		hall->ports[i] = net_port(hall->clients[i]);
	}
	MUST(send(hall->clients[0], "early", 5, 0));
	wl_fill(bytes, LARGE, seed);
	for (size_t sent = 0; sent < LARGE; sent += 1000)
		MUST(send(hall->clients[1], bytes + sent, 1000, 0));
	MUST(send(hall->clients[3], "last words", 10, 0));
	MUST(shutdown(hall->clients[3], SHUT_WR));
	MUST(send(hall->clients[4], "and gone", 8, 0));
	close(hall->clients[4]);
}

static void check(const struct hall *hall, unsigned seed, const char *name)
{
	for (int i = 0; i < WAITING; i++) {
		int served = accept(hall->listener, NULL, NULL);
		char got[16] = "";

		CHECK(served >= 0, "%s: number %d does not wait any more: %s", name, i, strerror(errno));
		CHECK(net_peer_port(served) == hall->ports[i], "%s: number %d is %d, was %d (of %d %d %d %d %d, at %d)", name, i, net_peer_port(served), hall->ports[i], hall->ports[0], hall->ports[1], hall->ports[2], hall->ports[3], hall->ports[4], net_port(hall->listener));
		fcntl(served, F_SETFL, 0);
		switch (i) {
		case 0:
			CHECK(recv(served, got, 16, 0) == 5 && strcmp(got, "early") == 0, "%s: '%s' arrives", name, got);
			break;
		case 1:
			net_expect(served, seed, 0, LARGE, name);
			break;
		case 2:
			CHECK(recv(served, got, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "%s: something arrives", name);
			break;
		default:
			CHECK(recv(served, got, 16, MSG_WAITALL) == (i == 3 ? 10 : 8), "%s: number %d: '%s' arrives", name, i, got);
			CHECK(recv(served, got, 1, 0) == 0, "%s: number %d has no end", name, i);
		}
		if (i == 4)
			continue;
		/* Both ways go on. */
		MUST(send(served, "an answer", 9, 0));
		memset(got, 0, sizeof(got));
		CHECK(recv(hall->clients[i], got, 9, MSG_WAITALL) == 9 && strcmp(got, "an answer") == 0, "%s: number %d gets no answer",
		      name, i);
		if (i != 3) {
			MUST(send(hall->clients[i], "more", 4, 0));
			CHECK(recv(served, got, 4, MSG_WAITALL) == 4, "%s: no more from number %d", name, i);
		}
		close(served);
		CHECK(recv(hall->clients[i], got, 1, 0) == 0, "%s: number %d sees no end", name, i);
	}
	CHECK(accept(hall->listener, NULL, NULL) < 0 && errno == EAGAIN, "%s: somebody else waits", name);
	net_set(hall->listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
}

static int listening(int family, int share, int port)
{
	int fd = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
	struct sockaddr_storage address = net_loopback(family, port);

	net_set(fd, SOL_SOCKET, SO_REUSEPORT, share);
	MUST(bind(fd, (struct sockaddr *)&address, net_size(family)));
	MUST(listen(fd, 16));
	return fd;
}

int main(int argc, char **argv)
{
	struct hall halls[4];
	struct sock_filter choose[] = { { BPF_RET | BPF_K, 0, 0, 1 } };
	struct sock_fprog program = { 1, choose };
	int shared[2];
	char byte;

	wl_init(argc, argv);
	fill(&halls[0], listening(AF_INET, 0, 0), AF_INET, 1);
	fill(&halls[1], listening(AF_INET6, 0, 0), AF_INET6, 2);
	/* All at the second of those that share a port. */
	shared[0] = listening(AF_INET, 1, 0);
	shared[1] = listening(AF_INET, 1, net_port(shared[0]));
	MUST(setsockopt(shared[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program)));
	fill(&halls[2], shared[1], AF_INET, 3);
	MUST(setsockopt(shared[0], SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &byte, sizeof(int)));
	/* Fewer may wait than do, and nobody who has not sent anything. */
	fill(&halls[3], listening(AF_INET, 0, 0), AF_INET, 4);
	MUST(listen(halls[3].listener, 1));
	net_set(halls[3].listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3);

	wl_ready();
	if (wl_lose)
		close(MUST(accept(halls[1].listener, NULL, NULL)));
	CHECK(accept(shared[0], NULL, NULL) < 0 && errno == EAGAIN, "somebody waits at the wrong socket");
	CHECK(net_get(halls[3].listener, IPPROTO_TCP, TCP_DEFER_ACCEPT) == 3, "nothing is deferred any more");
	check(&halls[0], 1, "IPv4");
	check(&halls[1], 2, "IPv6");
	check(&halls[2], 3, "the shared port");
	check(&halls[3], 4, "the small queue");
	wl_ok();
}
