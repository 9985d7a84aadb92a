// sysctl: net/ipv4/ping_group_range 0 0
// peer: no, CRIU restores them in user namespaces alone
/* Sockets for pings over IPv4 and IPv6: bound to an identifier, connected, and new ones. They still get their answers. */
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>

#include "net.h"

static int made(int family)
{
	return MUST(socket(family, SOCK_DGRAM, family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6));
}

/* Sends an echo and gets it back, with the identifier of the socket. */
static void ping(int fd, int family, bool connected)
{
	struct icmphdr echo = { .type = family == AF_INET ? ICMP_ECHO : ICMP6_ECHO_REQUEST, .un.echo.sequence = htons(7) };
	struct icmphdr answer = { 0 };
	struct sockaddr_storage to = net_loopback(family, 0);

	if (connected)
		CHECK(send(fd, &echo, sizeof(echo), 0) == sizeof(echo), "it cannot ping its peer: %s", strerror(errno));
	else
		MUST(sendto(fd, &echo, sizeof(echo), 0, (struct sockaddr *)&to, net_size(family)));
	CHECK(recv(fd, &answer, sizeof(answer), 0) == sizeof(answer), "no answer");
	CHECK(answer.type == (family == AF_INET ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY), "type %d answers", answer.type);
	CHECK(answer.un.echo.sequence == htons(7) && ntohs(answer.un.echo.id) == net_port(fd), "another echo answers");
}

int main(int argc, char **argv)
{
	static const int families[] = { AF_INET, AF_INET6 };
	struct timeval limit = { .tv_sec = 5 };
	int bound[2], connected[2], new[2], ports[2][2];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		struct sockaddr_storage own = net_loopback(families[i], 0), peer = own;

		bound[i] = made(families[i]);
		MUST(bind(bound[i], (struct sockaddr *)&own, net_size(families[i])));
		connected[i] = made(families[i]);
		MUST(connect(connected[i], (struct sockaddr *)&peer, net_size(families[i])));
		new[i] = made(families[i]);
		ping(bound[i], families[i], false);
		ping(connected[i], families[i], true);
		MUST(setsockopt(bound[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
		ports[0][i] = net_port(bound[i]);
		ports[1][i] = net_port(connected[i]);
	}

	wl_ready();
	if (wl_lose)
		for (int i = 0; i < 2; i++) {
			close(bound[i]);
			bound[i] = MUST(dup2(made(families[i]), bound[i]));
		}
	for (int i = 0; i < 2; i++) {
		CHECK(net_port(bound[i]) == ports[0][i], "identifier %d has become %d", ports[0][i], net_port(bound[i]));
		CHECK(net_port(connected[i]) == ports[1][i], "identifier %d has become %d", ports[1][i], net_port(connected[i]));
		ping(bound[i], families[i], false);
		ping(connected[i], families[i], true);
		ping(new[i], families[i], false);
	}
	wl_ok();
}
