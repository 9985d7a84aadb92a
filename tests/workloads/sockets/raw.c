/* Raw sockets of IPv4 and IPv6: protocol, address, peer, filter of ICMP, headers of their own. */
#include <netinet/icmp6.h>

#include "net.h"

/* linux/icmp.h, which does not go with net/if.h. */
#define ICMP_FILTER 1
struct icmp_filter {
	uint32_t data;
};

#ifndef SOL_RAW
#define SOL_RAW 255
#endif
/* For experiments (RFC 3692). */
#define PROTOCOL 253

int main(int argc, char **argv)
{
	struct icmp_filter filter = { ~1u /* ICMP_ECHOREPLY passes */ }, is;
	struct icmp6_filter filter6, is6;
	struct sockaddr_storage address = net_loopback(AF_INET, 0);
	socklen_t size = sizeof(is);
	int plain, headers, icmp, icmp6, sender;
	char got[64];

	wl_init(argc, argv);
	/* One of this workload alone: others have raw sockets of the same protocols. */
	((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(0x7f400000 | (getpid() & 0x3fffff));
	plain = MUST(socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, PROTOCOL));
	MUST(bind(plain, (struct sockaddr *)&address, net_size(AF_INET)));
	sender = MUST(socket(AF_INET, SOCK_RAW, PROTOCOL - 1));
	headers = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
	net_set(headers, SOL_SOCKET, SO_SNDBUF, 40000);
	icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	MUST(bind(icmp, (struct sockaddr *)&address, net_size(AF_INET)));
	MUST(setsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter, sizeof(filter)));
	net_set(icmp, IPPROTO_IP, IP_HDRINCL, 1);
	icmp6 = MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
	ICMP6_FILTER_SETBLOCKALL(&filter6);
	MUST(setsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &filter6, sizeof(filter6)));

	wl_ready();
	if (wl_lose)
		net_set(icmp, IPPROTO_IP, IP_HDRINCL, 0);
	CHECK(net_get(plain, SOL_SOCKET, SO_PROTOCOL) == PROTOCOL && net_get(headers, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_RAW,
	      "another protocol");
	CHECK(net_get(icmp, IPPROTO_IP, IP_HDRINCL) == 1 && net_get(headers, IPPROTO_IP, IP_HDRINCL) == 1 &&
		      net_get(plain, IPPROTO_IP, IP_HDRINCL) == 0,
	      "IP_HDRINCL");
	CHECK(net_get(headers, SOL_SOCKET, SO_SNDBUF) == 80000, "SO_SNDBUF");
	MUST(getsockopt(icmp, SOL_RAW, ICMP_FILTER, &is, &size));
	CHECK(is.data == filter.data, "the filter is %#x", is.data);
	size = sizeof(is6);
	MUST(getsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &is6, &size));
	CHECK(memcmp(&is6, &filter6, sizeof(is6)) == 0, "another filter of IPv6");
	sender = MUST(socket(AF_INET, SOCK_RAW, PROTOCOL));
	MUST(sendto(sender, "hello", 5, 0, (struct sockaddr *)&address, net_size(AF_INET)));
	CHECK(recv(plain, got, sizeof(got), 0) == 25 && memcmp(got + 20, "hello", 5) == 0, "nothing arrives");
	wl_ok();
}
