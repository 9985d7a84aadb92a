// peer: no, CRIU 4.2 loses memberships
// differs: descriptor socket.diag.memory.options, lists of senders have room for more when they were made one by one
/* UDP sockets that have joined groups of multicast on the loopback, with senders that they want to hear or not. */
#include "net.h"

static int joined(int fd, int level, const char *group, const char *sender, int mode)
{
	struct {
		struct group_filter filter;
		struct sockaddr_storage more[3];
	} is = { .filter.gf_interface = if_nametoindex("lo"), .filter.gf_numsrc = 4 };
	socklen_t size = sizeof(is);
	char got[INET6_ADDRSTRLEN] = "";

	if (level == IPPROTO_IP) {
		is.filter.gf_group.ss_family = AF_INET;
		inet_pton(AF_INET, group, &((struct sockaddr_in *)&is.filter.gf_group)->sin_addr);
	} else {
		is.filter.gf_group.ss_family = AF_INET6;
		inet_pton(AF_INET6, group, &((struct sockaddr_in6 *)&is.filter.gf_group)->sin6_addr);
	}
	if (getsockopt(fd, level, MCAST_MSFILTER, &is, &size) < 0)
		return 0;
	if (is.filter.gf_numsrc)
		inet_ntop(AF_INET, &((struct sockaddr_in *)is.filter.gf_slist)->sin_addr, got, sizeof(got));
	return (int)is.filter.gf_fmode == mode && is.filter.gf_numsrc == (sender != NULL) && strcmp(got, sender ? sender : "") == 0;
}

static void join(int fd, int level, int family, const char *group)
{
	struct group_req wish = { .gr_interface = if_nametoindex("lo"), .gr_group.ss_family = family };

	if (family == AF_INET)
		inet_pton(family, group, &((struct sockaddr_in *)&wish.gr_group)->sin_addr);
	else
		inet_pton(family, group, &((struct sockaddr_in6 *)&wish.gr_group)->sin6_addr);
	MUST(setsockopt(fd, level, MCAST_JOIN_GROUP, &wish, sizeof(wish)));
}

int main(int argc, char **argv)
{
	struct ip_mreq_source source = { .imr_interface.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in where = { .sin_family = AF_INET };
	struct in_addr loopback = { htonl(INADDR_LOOPBACK) };
	int plain, choosy, v6, sender;
	char got[8];

	wl_init(argc, argv);
	plain = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
	MUST(bind(plain, (struct sockaddr *)&where, sizeof(where)));
	join(plain, IPPROTO_IP, AF_INET, "239.77.1.1");
	join(plain, IPPROTO_IP, AF_INET, "239.77.1.2");
	inet_pton(AF_INET, "192.0.2.9", &source.imr_sourceaddr);
	inet_pton(AF_INET, "239.77.1.2", &source.imr_multiaddr);
	MUST(setsockopt(plain, IPPROTO_IP, IP_BLOCK_SOURCE, &source, sizeof(source)));
	choosy = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	inet_pton(AF_INET, "239.77.1.3", &source.imr_multiaddr);
	MUST(setsockopt(choosy, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &source, sizeof(source)));
	v6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	join(v6, IPPROTO_IPV6, AF_INET6, "ff05::77");
	join(v6, IPPROTO_IP, AF_INET, "239.77.1.4");

	wl_ready();
	if (wl_lose)
		close(v6), v6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	CHECK(joined(plain, IPPROTO_IP, "239.77.1.1", NULL, MCAST_EXCLUDE), "the plain one is not in its group");
	CHECK(joined(plain, IPPROTO_IP, "239.77.1.2", "192.0.2.9", MCAST_EXCLUDE), "it hears whom it does not want to");
	CHECK(!joined(plain, IPPROTO_IP, "239.77.1.3", "192.0.2.9", MCAST_INCLUDE), "it is in a group of another");
	CHECK(joined(choosy, IPPROTO_IP, "239.77.1.3", "192.0.2.9", MCAST_INCLUDE), "the choosy one hears others");
	CHECK(joined(v6, IPPROTO_IPV6, "ff05::77", NULL, MCAST_EXCLUDE), "that of IPv6 is not in its group");
	CHECK(joined(v6, IPPROTO_IP, "239.77.1.4", NULL, MCAST_EXCLUDE), "that of IPv6 is not in its group of IPv4");
	sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	MUST(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof(loopback)));
	where.sin_port = htons(net_port(plain));
	inet_pton(AF_INET, "239.77.1.1", &where.sin_addr);
	MUST(sendto(sender, "all", 3, 0, (struct sockaddr *)&where, sizeof(where)));
	CHECK(recv(plain, got, sizeof(got), 0) == 3, "nothing that is sent to the group arrives");
	wl_ok();
}
