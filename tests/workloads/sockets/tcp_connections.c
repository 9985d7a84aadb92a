// flags: --tcp-established
// criu-flags: --network-lock nftables
// differs: descriptor socket.unread, what was under way may have arrived
// differs: descriptor socket.unsent, what was under way may have arrived
// differs: descriptor socket.diag.received, what was under way may have arrived
// differs: descriptor socket.diag.sent, what was under way may have arrived
// differs: descriptor socket.diag.memory.on_its_way, what was under way may have arrived
// differs: descriptor socket.diag.memory.queued, what was under way may have arrived
// differs: descriptor socket.diag.tcp.notsent_bytes, what was under way may have arrived
// differs: descriptor socket.diag.timer, by what is under way
// differs: descriptor socket.IPPROTO_TCP.10, grows with what arrives
/* TCP connections between sockets of one process, over IPv4, IPv6 and IPv4 in IPv6: with data unread, data that the other
 * end had no room for, and none. */
#include "net.h"

#define KINDS 3

int main(int argc, char **argv)
{
	static const int families[KINDS] = { AF_INET, AF_INET6, AF_INET };
	int listeners[KINDS], idle[KINDS][2], unread[KINDS][2], full[KINDS][2], ports[KINDS];
	size_t sent[KINDS];
	char got[16];

	wl_init(argc, argv);
	for (int i = 0; i < KINDS; i++) {
		if (i < 2) {
			listeners[i] = net_bound(families[i], SOCK_STREAM, 0, 0);
		} else {
			struct sockaddr_in6 any = { .sin6_family = AF_INET6 };

			/* The server speaks IPv6, its client IPv4. */
			listeners[i] = MUST(socket(AF_INET6, SOCK_STREAM, 0));
			MUST(bind(listeners[i], (struct sockaddr *)&any, sizeof(any)));
		}
		MUST(listen(listeners[i], 4));
		net_pair(listeners[i], families[i], idle[i]);
		net_pair(listeners[i], families[i], unread[i]);
		net_pair(listeners[i], families[i], full[i]);
		net_set(idle[i][0], IPPROTO_TCP, TCP_NODELAY, 1);
		net_set(idle[i][0], SOL_SOCKET, SO_KEEPALIVE, 1);
		net_set(idle[i][0], IPPROTO_TCP, TCP_KEEPIDLE, 99);
		MUST(send(unread[i][0], "question", 8, 0));
		MUST(send(unread[i][1], "answer", 6, 0));
		sent[i] = 0;
		/* Until everything between them is full, and what is under way has arrived. */
		for (int quiet = 0; quiet < 20; quiet++) {
			size_t before = sent[i];

			sent[i] = net_stuff(full[i][0], i, sent[i]);
			quiet = sent[i] > before ? 0 : quiet;
			wl_sleep_ms(10);
		}
		ports[i] = net_port(idle[i][0]);
	}

	wl_ready();
	if (wl_lose)
		MUST(recv(unread[1][1], got, 1, 0));
	for (int i = 0; i < KINDS; i++) {
		memset(got, 0, sizeof(got));
		CHECK(recv(unread[i][1], got, sizeof(got), 0) == 8 && strcmp(got, "question") == 0, "%d: the question is '%s'", i, got);
		memset(got, 0, sizeof(got));
		CHECK(recv(unread[i][0], got, sizeof(got), 0) == 6 && strcmp(got, "answer") == 0, "%d: the answer is '%s'", i, got);
		CHECK(net_port(idle[i][0]) == ports[i] && net_peer_port(idle[i][1]) == ports[i], "%d: a port is another", i);
		CHECK(net_get(idle[i][0], IPPROTO_TCP, TCP_NODELAY) == 1 && net_get(idle[i][0], SOL_SOCKET, SO_KEEPALIVE) == 1 &&
			      net_get(idle[i][0], IPPROTO_TCP, TCP_KEEPIDLE) == 99,
		      "%d: options are lost", i);
		CHECK(recv(idle[i][0], got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%d: something has come", i);
		MUST(send(idle[i][0], "there", 5, 0));
		CHECK(recv(idle[i][1], got, 5, MSG_WAITALL) == 5, "%d: nothing arrives", i);
		MUST(send(idle[i][1], "back", 4, 0));
		CHECK(recv(idle[i][0], got, 4, MSG_WAITALL) == 4, "%d: nothing comes back", i);
		net_expect(full[i][1], i, 0, sent[i], "the full one");
		MUST(send(full[i][0], "end", 3, 0));
		CHECK(recv(full[i][1], got, 3, MSG_WAITALL) == 3 && memcmp(got, "end", 3) == 0, "%d: the end is lost", i);
		CHECK(recv(full[i][1], got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%d: bytes came twice", i);
		close(full[i][0]);
		CHECK(recv(full[i][1], got, 1, 0) == 0, "%d: the close is not seen", i);
		net_serves(listeners[i], families[i], "the listening one");
	}
	wl_ok();
}
