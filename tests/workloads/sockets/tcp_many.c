// peer: no, CRIU 4.2 fails on it by itself here
// flags: --tcp-established --file-locks
// criu-flags: --network-lock nftables
/* Very many connections of TCP in one process, most of which are alike, others in one thing or the other not: what is
 * seen of all at once must be what each would tell. */
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>

#include "net.h"

#define KINDS 3
#define PAIRS 20

static int ends[KINDS][PAIRS][2];

/* Makes one end another than the rest, by its number. */
static void vary(int fd, int family, int number)
{
	struct linger linger = { 1, 7 };
	struct timeval limit = { 3, 500000 };
	struct sock_filter all = { BPF_RET | BPF_K, 0, 0, 0xffffffff };
	struct sock_fprog filter = { 1, &all };

	switch (number) {
	case 3:
		net_set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		net_set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
		net_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 99);
		break;
	case 4:
		MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
		MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
		break;
	case 5:
		MUST(fcntl(fd, F_SETOWN, getpid()));
		MUST(fcntl(fd, F_SETSIG, SIGUSR1));
		break;
	case 6:
		MUST(flock(fd, LOCK_EX));
		break;
	case 7:
		MUST(fcntl(fd, F_SETFD, FD_CLOEXEC));
		break;
	case 8:
		MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
		break;
	case 9:
		MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)));
		break;
	case 10:
		MUST(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
		break;
	case 11:
		net_set(fd, SOL_SOCKET, SO_SNDBUF, 40000);
		net_set(fd, SOL_SOCKET, SO_RCVBUF, 50000);
		break;
	case 12:
		net_set(fd, SOL_SOCKET, SO_OOBINLINE, 1);
		net_set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
		break;
	case 13:
		if (family == AF_INET)
			net_set(fd, IPPROTO_IP, IP_TTL, 33);
		else
			net_set(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 33);
		break;
	case 14:
		MUST(send(fd, "unread", 6, 0));
		break;
	case 15:
		MUST(send(fd, "u", 1, MSG_OOB));
		break;
	case 16:
		MUST(shutdown(fd, SHUT_WR));
		break;
	}
}

/* Two ends speak with each other. */
static void check(int kind, int number)
{
	int *pair = ends[kind][number];
	char got[8] = "";

	if (number == 14)
		CHECK(recv(pair[1], got, 6, MSG_WAITALL) == 6 && strcmp(got, "unread") == 0, "%d: '%s' was unread", kind, got);
	if (number == 15)
		CHECK(recv(pair[1], got, 1, MSG_OOB) == 1 && got[0] == 'u', "%d: '%s' was urgent", kind, got);
	if (number == 16) {
		CHECK(recv(pair[1], got, 1, 0) == 0, "%d: the end is lost", kind);
	} else {
		MUST(send(pair[0], "there", 5, 0));
		CHECK(recv(pair[1], got, 5, MSG_WAITALL) == 5 && memcmp(got, "there", 5) == 0, "%d %d: nothing arrives", kind, number);
	}
	MUST(send(pair[1], "back", 4, 0));
	wl_sleep_ms(number == 8);
	CHECK(recv(pair[0], got, 4, MSG_WAITALL) == 4 && memcmp(got, "back", 4) == 0, "%d %d: nothing comes back", kind, number);
}

int main(int argc, char **argv)
{
	static const int families[KINDS] = { AF_INET, AF_INET6, AF_INET };
	int listeners[KINDS];

	wl_init(argc, argv);
	for (int kind = 0; kind < KINDS; kind++) {
		if (kind < 2) {
			listeners[kind] = net_bound(families[kind], SOCK_STREAM, 0, 0);
		} else {
			struct sockaddr_in6 any = { .sin6_family = AF_INET6 };

			/* The server speaks IPv6, its client IPv4. */
			listeners[kind] = MUST(socket(AF_INET6, SOCK_STREAM, 0));
			MUST(bind(listeners[kind], (struct sockaddr *)&any, sizeof(any)));
		}
		MUST(listen(listeners[kind], 4));
		for (int number = 0; number < PAIRS; number++) {
			net_pair(listeners[kind], families[kind], ends[kind][number]);
			vary(ends[kind][number][0], families[kind], number);
		}
	}
	/* What was sent has arrived, and is acknowledged. */
	wl_sleep_ms(100);

	wl_ready();
	if (wl_lose)
		net_set(ends[1][3][0], IPPROTO_TCP, TCP_KEEPIDLE, 98);
	for (int kind = 0; kind < KINDS; kind++) {
		CHECK(net_get(ends[kind][3][0], IPPROTO_TCP, TCP_KEEPIDLE) == 99, "%d: an option is lost", kind);
		CHECK(net_get(ends[kind][2][0], IPPROTO_TCP, TCP_KEEPIDLE) != 99, "%d: another has its option", kind);
		CHECK(fcntl(ends[kind][5][0], F_GETOWN) == getpid() && fcntl(ends[kind][5][0], F_GETSIG) == SIGUSR1,
		      "%d: the owner is lost", kind);
		CHECK(fcntl(ends[kind][4][0], F_GETOWN) == 0, "%d: another has its owner", kind);
		CHECK(fcntl(ends[kind][7][0], F_GETFD) == FD_CLOEXEC && fcntl(ends[kind][6][0], F_GETFD) == 0,
		      "%d: to be closed by execve is what was not", kind);
		for (int number = 0; number < PAIRS; number++)
			check(kind, number);
		net_serves(listeners[kind], families[kind], "the listening one");
	}
	wl_ok();
}
