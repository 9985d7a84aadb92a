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
/* TCP connections of which one direction has ended, with data behind it and in the other. */
#include "net.h"

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int listener, plain[2][2], data[2][2], slow[2][2];
	size_t sent[2] = { 0, 0 };
	char got[16];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		listener = net_bound(families[i], SOCK_STREAM, 0, 0);
		MUST(listen(listener, 4));
		net_pair(listener, families[i], plain[i]);
		net_pair(listener, families[i], data[i]);
		net_pair(listener, families[i], slow[i]);
		close(listener);
		MUST(shutdown(plain[i][0], SHUT_WR));
		MUST(send(data[i][0], "last words", 10, 0));
		MUST(shutdown(data[i][0], SHUT_WR));
		MUST(send(data[i][1], "an answer", 9, 0));
		/* Its end stands behind data for which there is no room. */
		for (int quiet = 0; quiet < 20; quiet++) {
			size_t before = sent[i];

			sent[i] = net_stuff(slow[i][0], i, sent[i]);
			quiet = sent[i] > before ? 0 : quiet;
			wl_sleep_ms(10);
		}
		MUST(shutdown(slow[i][0], SHUT_WR));
		WAIT_FOR(net_state(plain[i][0]) == TCP_FIN_WAIT2 && net_state(data[i][0]) == TCP_FIN_WAIT2, "no FIN_WAIT2");
		CHECK(net_state(plain[i][1]) == TCP_CLOSE_WAIT && net_state(data[i][1]) == TCP_CLOSE_WAIT, "no CLOSE_WAIT");
		CHECK(net_state(slow[i][0]) == TCP_FIN_WAIT1, "no FIN_WAIT1");
	}

	wl_ready();
	if (wl_lose)
		MUST(recv(data[1][1], got, 1, 0));
	for (int i = 0; i < 2; i++) {
		CHECK(net_state(plain[i][1]) == TCP_CLOSE_WAIT, "%d: the state is %d", i, net_state(plain[i][1]));
		CHECK(recv(plain[i][1], got, 1, MSG_DONTWAIT) == 0, "%d: the end is not seen", i);
		CHECK(send(plain[i][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "%d: it can send", i);
		MUST(send(plain[i][1], "still", 5, 0));
		CHECK(recv(plain[i][0], got, 5, MSG_WAITALL) == 5, "%d: nothing arrives", i);
		memset(got, 0, sizeof(got));
		CHECK(recv(data[i][1], got, sizeof(got), MSG_WAITALL) == 10 && strcmp(got, "last words") == 0, "%d: '%s'", i, got);
		CHECK(recv(data[i][1], got, 1, 0) == 0, "%d: no end behind the data", i);
		CHECK(recv(data[i][0], got, 9, MSG_WAITALL) == 9, "%d: no answer", i);
		net_expect(slow[i][1], i, 0, sent[i], "the slow one");
		CHECK(recv(slow[i][1], got, 1, 0) == 0, "%d: no end behind much data", i);
		/* All three end now. */
		close(plain[i][1]);
		CHECK(recv(plain[i][0], got, 1, 0) == 0, "%d: the other end is not seen", i);
		close(data[i][1]);
		CHECK(recv(data[i][0], got, 1, 0) == 0, "%d: the other end is not seen", i);
		close(slow[i][1]);
		CHECK(recv(slow[i][0], got, 1, 0) == 0, "%d: the other end is not seen", i);
	}
	wl_ok();
}
