// flags: --tcp-established
// peer: no, CRIU 4.2 loses the keys
// differs: descriptor socket.diag.tcp.*, what was counted
// differs: descriptor socket.diag.received, an end that was read counts as unread again
// differs: descriptor socket.IPPROTO_TCP.10, the window that is told changes with what arrives
/* Packets that are signed by keys (TCP-MD5): of sockets that listen, of connections, of half a one. */
#include "net.h"

static void sign(int fd, int family, const char *key)
{
	struct tcp_md5sig md5 = { .tcpm_flags = TCP_MD5SIG_FLAG_PREFIX, .tcpm_prefixlen = family == AF_INET ? 8 : 128 };
	struct sockaddr_storage address = net_loopback(family, 0);

	memcpy(&md5.tcpm_addr, &address, sizeof(address));
	md5.tcpm_keylen = strlen(key);
	memcpy(md5.tcpm_key, key, md5.tcpm_keylen);
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG_EXT, &md5, sizeof(md5)));
}

static void start(int listener, int family, const char *key, int ends[2])
{
	ends[0] = MUST(socket(family, SOCK_STREAM, 0));
	sign(ends[0], family, key);
	net_connect(ends[0], family, net_port(listener));
	ends[1] = MUST(accept(listener, NULL, NULL));
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int listeners[2], ends[2][2], halves[2][2], later[2];
	char got[8];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		listeners[i] = net_bound(families[i], SOCK_STREAM, 0, 0);
		sign(listeners[i], families[i], "a secret");
		MUST(listen(listeners[i], 4));
		start(listeners[i], families[i], "a secret", ends[i]);
		start(listeners[i], families[i], "a secret", halves[i]);
		MUST(shutdown(halves[i][0], SHUT_WR));
		CHECK(recv(halves[i][1], got, 1, 0) == 0, "no end");
	}

	wl_ready();
	if (wl_lose)
		sign(listeners[1], AF_INET6, "another");
	for (int i = 0; i < 2; i++) {
		/* Who signs otherwise is not heard. */
		struct sockaddr_storage address = net_loopback(families[i], net_port(listeners[i]));
		int stranger = MUST(socket(families[i], SOCK_STREAM | SOCK_NONBLOCK, 0));
		struct pollfd asked = { .fd = stranger, .events = POLLOUT };

		net_begin(stranger, families[i], net_port(listeners[i]));
		CHECK(poll(&asked, 1, 50) == 0, "%d: a stranger is heard", i);
		close(stranger);
		MUST(send(ends[i][0], "hello", 5, 0));
		CHECK(recv(ends[i][1], got, 5, MSG_WAITALL) == 5, "%d: nothing arrives", i);
		MUST(send(ends[i][1], "hello", 5, 0));
		CHECK(recv(ends[i][0], got, 5, MSG_WAITALL) == 5, "%d: no answer", i);
		MUST(send(halves[i][1], "still", 5, 0));
		CHECK(recv(halves[i][0], got, 5, MSG_WAITALL) == 5, "%d: nothing arrives over half a one", i);
		asked = (struct pollfd){ .fd = listeners[i], .events = POLLIN };
		later[0] = MUST(socket(families[i], SOCK_STREAM | SOCK_NONBLOCK, 0));
		sign(later[0], families[i], "a secret");
		connect(later[0], (struct sockaddr *)&address, net_size(families[i]));
		CHECK(poll(&asked, 1, 3000) == 1, "%d: nobody can connect with the key", i);
		later[1] = MUST(accept(listeners[i], NULL, NULL));
	}
	wl_ok();
}
