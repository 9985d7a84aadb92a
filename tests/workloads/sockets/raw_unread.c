// sysctl: net/ipv4/ping_group_range 0 0
// peer: no, CRIU 4.2 loses what was not read
/* Raw sockets and such for pings, with packets that nobody has read yet: each comes whole, with its header, in its order. */
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>

#include "net.h"

#ifndef SOL_RAW
#define SOL_RAW 255
#endif
#define PROTOCOL 253
#define LONG 30000

/* An address of this workload alone: others have raw sockets of the same protocol. */
static struct sockaddr_in own_address(void)
{
	struct sockaddr_in own = { .sin_family = AF_INET };

	own.sin_addr.s_addr = htonl(0x7f400000 | (getpid() & 0x3fffff));
	return own;
}

/* The next packet is this one, with a header of IPv4. */
static void expect(int fd, int ttl, const uint8_t *text, size_t size, const char *what)
{
	static uint8_t got[LONG + 100];
	struct sockaddr_in own = own_address();
	struct iphdr *header = (struct iphdr *)got;
	ssize_t came = recv(fd, got, sizeof(got), MSG_DONTWAIT);

	CHECK(came == (ssize_t)(size + 20), "%s: %zd bytes come, should be %zu: %s", what, came, size + 20, strerror(errno));
	CHECK(header->ttl == ttl && header->daddr == own.sin_addr.s_addr && header->saddr == own.sin_addr.s_addr,
	      "%s: lifetime %d, from %#x to %#x", what, header->ttl, header->saddr, header->daddr);
	CHECK(memcmp(got + 20, text, size) == 0, "%s: another text", what);
}

/* What was sent with which hop limit, over IPv6. */
static void expect6(int fd, int hops, const char *text, const char *what)
{
	char got[100] = "", control[100];
	struct iovec iov = { got, sizeof(got) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header;

	CHECK(recvmsg(fd, &message, MSG_DONTWAIT) == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s: '%s' comes, %s", what,
	      got, strerror(errno));
	header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == IPV6_HOPLIMIT && *(int *)CMSG_DATA(header) == hops, "%s: another hop limit", what);
}

static void ask(int fd, int family, int number)
{
	struct icmphdr echo = { .type = family == AF_INET ? ICMP_ECHO : ICMP6_ECHO_REQUEST, .un.echo.sequence = htons(number) };

	echo.un.echo.id = htons(getpid());
	if (family == AF_INET) {
		uint32_t sum = echo.type + echo.un.echo.id + echo.un.echo.sequence;

		echo.checksum = ~(sum + (sum >> 16));
	}
	CHECK(send(fd, &echo, sizeof(echo), 0) == sizeof(echo), "an echo is not sent: %s", strerror(errno));
}

static void answered(int fd, size_t before, int number, const char *what)
{
	uint8_t got[100];
	struct icmphdr *answer = (struct icmphdr *)(got + before);
	ssize_t came = recv(fd, got, sizeof(got), MSG_DONTWAIT);

	CHECK(came == (ssize_t)(before + sizeof(*answer)), "%s: no answer %d (%zd, %s)", what, number, came, strerror(errno));
	CHECK(ntohs(answer->un.echo.sequence) == number, "%s: another answer, %d", what, ntohs(answer->un.echo.sequence));
}

int main(int argc, char **argv)
{
	static const int families[] = { AF_INET, AF_INET6 };
	struct sockaddr_in own;
	struct sockaddr_in6 own6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
	struct {
		uint32_t data;
	} answers = { ~1u /* ICMP_ECHOREPLY passes */ };
	static uint8_t text[LONG];
	int plain, sender, plain6, sender6, icmp, pings[2], protocol6;

	wl_init(argc, argv);
	own = own_address();
	protocol6 = 143 + getpid() % 100;
	wl_fill(text, sizeof(text), 3);
	plain = MUST(socket(AF_INET, SOCK_RAW, PROTOCOL));
	MUST(bind(plain, (struct sockaddr *)&own, sizeof(own)));
	sender = MUST(socket(AF_INET, SOCK_RAW, PROTOCOL));
	MUST(bind(sender, (struct sockaddr *)&own, sizeof(own)));
	MUST(connect(sender, (struct sockaddr *)&own, sizeof(own)));
	net_set(sender, IPPROTO_IP, IP_TTL, 33);
	MUST(send(sender, text, 5, 0));
	net_set(sender, IPPROTO_IP, IP_TTL, 44);
	MUST(send(sender, text, sizeof(text), 0));
	MUST(send(sender, text, 0, 0));
	close(sender);

	plain6 = MUST(socket(AF_INET6, SOCK_RAW, protocol6));
	net_set(plain6, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	sender6 = MUST(socket(AF_INET6, SOCK_RAW, protocol6));
	MUST(connect(sender6, (struct sockaddr *)&own6, sizeof(own6)));
	net_set(sender6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 77);
	MUST(send(sender6, "first", 5, 0));
	net_set(sender6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 78);
	MUST(send(sender6, "second", 6, 0));
	close(sender6);

	icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	MUST(setsockopt(icmp, SOL_RAW, 1 /* ICMP_FILTER */, &answers, sizeof(answers)));
	MUST(bind(icmp, (struct sockaddr *)&own, sizeof(own)));
	MUST(connect(icmp, (struct sockaddr *)&own, sizeof(own)));
	for (int i = 0; i < 2; i++) {
		pings[i] = MUST(socket(families[i], SOCK_DGRAM, i ? IPPROTO_ICMPV6 : IPPROTO_ICMP));
		MUST(connect(pings[i], i ? (struct sockaddr *)&own6 : (struct sockaddr *)&own, net_size(families[i])));
		for (int n = 0; n < 3; n++)
			ask(pings[i], families[i], n);
	}
	ask(icmp, AF_INET, 10);
	ask(icmp, AF_INET, 11);

	wl_ready();
	if (wl_lose)
		MUST(recv(pings[1], text, sizeof(text), 0));
	expect(plain, 33, text, 5, "the first");
	expect(plain, 44, text, sizeof(text), "a long one");
	expect(plain, 44, text, 0, "an empty one");
	CHECK(recv(plain, text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "there is more");
	expect6(plain6, 77, "first", "IPv6");
	expect6(plain6, 78, "second", "IPv6");
	CHECK(recv(plain6, text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "there is more of IPv6");
	for (int i = 0; i < 2; i++) {
		for (int n = 0; n < 3; n++)
			answered(pings[i], 0, n, i ? "pings of IPv6" : "pings");
		ask(pings[i], families[i], 7);
		answered(pings[i], 0, 7, "a new ping");
	}
	answered(icmp, 20, 10, "raw ICMP");
	answered(icmp, 20, 11, "raw ICMP");
	ask(icmp, AF_INET, 12);
	answered(icmp, 20, 12, "raw ICMP");
	wl_ok();
}
