// peer: no, CRIU 4.2 loses these options
/* UDP sockets with options that few set; a filter that is locked. */
#include "net.h"

#ifndef SO_LOCK_FILTER
#define SO_LOCK_FILTER 44
#endif

static const struct {
	const char *name;
	int v6, level, option, value;
} numbers[] = {
	{ "SO_TIMESTAMP", 0, SOL_SOCKET, SO_TIMESTAMP, 1 },
	{ "SO_RXQ_OVFL", 0, SOL_SOCKET, SO_RXQ_OVFL, 1 },
	{ "IP_RECVERR", 0, IPPROTO_IP, IP_RECVERR, 1 },
	{ "IP_RECVTTL", 0, IPPROTO_IP, IP_RECVTTL, 1 },
	{ "IP_RECVTOS", 0, IPPROTO_IP, IP_RECVTOS, 1 },
	{ "IP_MULTICAST_TTL", 0, IPPROTO_IP, IP_MULTICAST_TTL, 7 },
	{ "IP_MULTICAST_LOOP", 0, IPPROTO_IP, IP_MULTICAST_LOOP, 0 },
	{ "IP_MULTICAST_ALL", 0, IPPROTO_IP, IP_MULTICAST_ALL, 0 },
	{ "IP_MTU_DISCOVER", 0, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO },
	{ "UDP_SEGMENT", 0, IPPROTO_UDP, UDP_SEGMENT, 500 },
	{ "UDP_GRO", 0, IPPROTO_UDP, UDP_GRO, 1 },
	{ "IPV6_UNICAST_HOPS", 1, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9 },
	{ "IPV6_MULTICAST_HOPS", 1, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 5 },
	{ "IPV6_RECVERR", 1, IPPROTO_IPV6, IPV6_RECVERR, 1 },
	{ "IPV6_RECVPKTINFO", 1, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1 },
	{ "IPV6_RECVHOPLIMIT", 1, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1 },
	{ "IPV6_RECVTCLASS", 1, IPPROTO_IPV6, IPV6_RECVTCLASS, 1 },
	{ "IPV6_DONTFRAG", 1, IPPROTO_IPV6, IPV6_DONTFRAG, 1 },
	{ "IPV6_MTU_DISCOVER", 1, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO },
	{ "IP_TTL of IPv6", 1, IPPROTO_IP, IP_TTL, 33 },
};
#define NUMBERS (sizeof(numbers) / sizeof(numbers[0]))

int main(int argc, char **argv)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, 0xffff) }, told[8];
	struct sock_fprog program = { .len = 1, .filter = code };
	struct in_addr where = { htonl(INADDR_LOOPBACK) };
	socklen_t count = 8;
	int fds[2], locked;

	wl_init(argc, argv);
	fds[0] = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	fds[1] = net_bound(AF_INET6, SOCK_DGRAM, 0, 0);
	for (size_t i = 0; i < NUMBERS; i++)
		net_set(fds[numbers[i].v6], numbers[i].level, numbers[i].option, numbers[i].value);
	MUST(setsockopt(fds[0], IPPROTO_IP, IP_MULTICAST_IF, &where, sizeof(where)));
	net_set(fds[1], IPPROTO_IPV6, IPV6_MULTICAST_IF, if_nametoindex("lo"));
	locked = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	MUST(setsockopt(locked, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	net_set(locked, SOL_SOCKET, SO_LOCK_FILTER, 1);

	wl_ready();
	if (wl_lose)
		net_set(fds[0], IPPROTO_IP, IP_MULTICAST_ALL, 1);
	for (size_t i = 0; i < NUMBERS; i++)
		CHECK(net_get(fds[numbers[i].v6], numbers[i].level, numbers[i].option) == numbers[i].value, "%s is %d",
		      numbers[i].name, net_get(fds[numbers[i].v6], numbers[i].level, numbers[i].option));
	CHECK(net_get(fds[0], IPPROTO_IP, IP_MULTICAST_IF) == (int)where.s_addr, "IP_MULTICAST_IF");
	CHECK(net_get(fds[1], IPPROTO_IPV6, IPV6_MULTICAST_IF) == (int)if_nametoindex("lo"), "IPV6_MULTICAST_IF");
	MUST(getsockopt(locked, SOL_SOCKET, SO_GET_FILTER, told, &count));
	CHECK(count == 1 && memcmp(told, code, sizeof(code)) == 0, "another filter");
	CHECK(setsockopt(locked, SOL_SOCKET, SO_DETACH_FILTER, &count, sizeof(count)) == -1 && errno == EPERM,
	      "it is not locked");
	wl_ok();
}
