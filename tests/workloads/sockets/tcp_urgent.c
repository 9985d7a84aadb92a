// flags: --tcp-established
// peer: no, CRIU 4.2 loses the mark of urgent data
// differs: descriptor socket.IPPROTO_TCP.10, the window that is told changes with what arrives
// differs: descriptor socket.unread, what was under way may have arrived
// differs: descriptor socket.unsent, what was under way may have arrived
// differs: descriptor socket.diag.*, what was counted, and may arrive meanwhile
/* Urgent data: not read, read before what is in front of it, in the stream (SO_OOBINLINE), announced and on its way. */
#include "net.h"

enum { UNREAD, TAKEN, INLINE, MUCH, UNDER_WAY, ALL };

static size_t stuffed[2];

static void set_up(int pair[2], int kind, int family)
{
	char got;

	switch (kind) {
	case UNREAD:
	case TAKEN:
		MUST(send(pair[0], "before!", 7, MSG_OOB));
		MUST(send(pair[0], "behind", 6, 0));
		break;
	case INLINE:
		net_set(pair[1], SOL_SOCKET, SO_OOBINLINE, 1);
		MUST(send(pair[0], "before!", 7, MSG_OOB));
		MUST(send(pair[0], "behind", 6, 0));
		break;
	case MUCH:
		MUST(send(pair[0], "!", 1, MSG_OOB));
		for (int i = 0; i < 20; i++) {
			uint8_t bytes[1000];

			for (size_t j = 0; j < sizeof(bytes); j++)
				bytes[j] = wl_byte(family, 1000 * i + j);
			MUST(send(pair[0], bytes, sizeof(bytes), 0));
		}
		break;
	case UNDER_WAY:
		/* No room for the byte: its announcement comes before it. */
		for (int quiet = 0; quiet < 20; quiet++) {
			size_t before = stuffed[family == AF_INET6];

			stuffed[family == AF_INET6] = net_stuff(pair[0], family, before);
			quiet = stuffed[family == AF_INET6] > before ? 0 : quiet;
			wl_sleep_ms(5);
		}
		net_set(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20);
		MUST(send(pair[0], "!", 1, MSG_OOB));
		return;
	}
	WAIT_FOR(net_ready(pair[1]) & POLLPRI, "it does not arrive");
	if (kind == TAKEN)
		CHECK(recv(pair[1], &got, 1, MSG_OOB) == 1 && got == '!', "nothing urgent");
	if (kind != MUCH) {
		int unread = 0, all = kind == INLINE ? 13 : 6;

		WAIT_FOR((MUST(ioctl(pair[1], FIONREAD, &unread)), unread == all), "%d bytes arrive", unread);
		MUST(recv(pair[1], &got, 1, 0));
	}
}

static void check(int pair[2], int kind, int family)
{
	char got[16] = "";
	int mark = 0;

	switch (kind) {
	case UNREAD:
		CHECK(net_ready(pair[1]) & POLLPRI, "%d: nothing urgent is told", family);
		CHECK(recv(pair[1], got, 1, MSG_OOB) == 1 && got[0] == '!', "%d: the urgent byte: %s", family, strerror(errno));
		/* fall through */
	case TAKEN:
		CHECK(recv(pair[1], got, 1, MSG_OOB) < 0 && errno == EINVAL, "%d: it can be read again", family);
		CHECK(recv(pair[1], got, sizeof(got), 0) == 5 && memcmp(got, "efore", 5) == 0, "%d: before the mark: '%s'", family, got);
		CHECK(MUST(ioctl(pair[1], SIOCATMARK, &mark)) == 0 && mark, "%d: not at the mark", family);
		CHECK(recv(pair[1], got, sizeof(got), 0) == 6 && memcmp(got, "behind", 6) == 0, "%d: behind the mark: '%s'", family, got);
		break;
	case INLINE:
		CHECK(net_ready(pair[1]) & POLLPRI, "%d: nothing urgent is told", family);
		CHECK(recv(pair[1], got, sizeof(got), 0) == 5 && memcmp(got, "efore", 5) == 0, "%d: before the mark: '%s'", family, got);
		CHECK(MUST(ioctl(pair[1], SIOCATMARK, &mark)) == 0 && mark, "%d: not at the mark", family);
		CHECK(recv(pair[1], got, sizeof(got), 0) == 7 && memcmp(got, "!behind", 7) == 0, "%d: from the mark: '%s'", family, got);
		break;
	case MUCH:
		CHECK(MUST(ioctl(pair[1], SIOCATMARK, &mark)) == 0 && mark, "%d: not at the mark", family);
		CHECK(recv(pair[1], got, 1, MSG_OOB) == 1 && got[0] == '!', "%d: the urgent byte: %s", family, strerror(errno));
		net_expect(pair[1], family, 0, 20000, "behind the mark");
		break;
	case UNDER_WAY:
		net_expect(pair[1], family, 0, stuffed[family == AF_INET6], "before what is under way");
		WAIT_FOR(net_ready(pair[1]) & POLLPRI, "%d: it does not arrive", family);
		CHECK(MUST(ioctl(pair[1], SIOCATMARK, &mark)) == 0 && mark, "%d: not at the mark of what was under way", family);
		CHECK(recv(pair[1], got, 1, MSG_OOB) == 1 && got[0] == '!', "%d: the urgent byte: %s", family, strerror(errno));
		break;
	}
	MUST(send(pair[0], "more", 4, 0));
	CHECK(recv(pair[1], got, 4, MSG_WAITALL) == 4 && memcmp(got, "more", 4) == 0, "%d %d: no more arrives", family, kind);
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int pairs[2][ALL][2];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		int listener = net_bound(families[i], SOCK_STREAM, 0, 0);

		MUST(listen(listener, 1));
		for (int j = 0; j < ALL; j++) {
			net_pair(listener, families[i], pairs[i][j]);
			set_up(pairs[i][j], j, families[i]);
		}
		close(listener);
	}

	wl_ready();
	if (wl_lose)
		MUST(recv(pairs[1][UNREAD][1], &(char){ 0 }, 1, MSG_OOB));
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < ALL; j++)
			check(pairs[i][j], j, families[i]);
	wl_ok();
}
