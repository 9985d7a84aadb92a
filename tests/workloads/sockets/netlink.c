// peer: no, CRIU 4.2 has no groups above 32, and loses the options
/* Netlink sockets: ports, groups, peers, options, a filter; and the kernel still answers. */
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "net.h"

/* Of NETLINK_USERSOCK, on which programs speak with one another. */
#define GROUP 21
#define FAR_GROUP 32

static uint32_t port_of(int fd)
{
	struct sockaddr_nl name;
	socklen_t size = sizeof(name);

	MUST(getsockname(fd, (struct sockaddr *)&name, &size));
	return name.nl_pid;
}

static int netlink(int type, int protocol, uint32_t port, uint32_t groups)
{
	struct sockaddr_nl name = { .nl_family = AF_NETLINK, .nl_pid = port, .nl_groups = groups };
	int fd = MUST(socket(AF_NETLINK, type | SOCK_NONBLOCK, protocol));

	if (port || groups)
		MUST(bind(fd, (struct sockaddr *)&name, sizeof(name)));
	return fd;
}

/* Another process of this workload may be in the same groups: who is in one hears only what begins with its own pid. */
static void say(int fd, const struct sockaddr_nl *to, int error)
{
	char text[17] = "    twelve chars";
	uint32_t pid = getpid();
	ssize_t sent;

	memcpy(text, &pid, sizeof(pid));
	sent = sendto(fd, text, 16, 0, (const struct sockaddr *)to, to ? sizeof(*to) : 0);
	/* What goes to a group goes to the kernel as well, which listens to nobody here. */
	CHECK(error ? sent == -1 && errno == error : sent == 16, "sending: %zd, %s", sent, strerror(errno));
}

/* A datagram must be there, from the port. */
static void hears(int fd, const char *what, uint32_t from)
{
	struct sockaddr_nl name;
	socklen_t size = sizeof(name);
	char got[64] = "";
	ssize_t len = recvfrom(fd, got, sizeof(got), 0, (struct sockaddr *)&name, &size);

	CHECK(len == 16 && memcmp(got + 4, "twelve chars", 12) == 0, "%s gets %zd bytes: %s", what, len, strerror(errno));
	CHECK(name.nl_pid == from, "%s hears %u, not %u", what, name.nl_pid, from);
}

/* The kernel lists its network devices: the loopback device is the first. */
static void lists_devices(int fd, const char *what)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg body;
	} ask = { { sizeof(ask), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0 }, { .ifi_family = AF_UNSPEC } };
	static char got[65536];
	struct nlmsghdr *first = (struct nlmsghdr *)got;
	ssize_t len;

	MUST(send(fd, &ask, sizeof(ask), 0));
	len = recv(fd, got, sizeof(got), 0);
	CHECK(len >= (ssize_t)sizeof(ask) && first->nlmsg_type == RTM_NEWLINK && first->nlmsg_seq == 7, "%s gets no list: %zd",
	      what, len);
	CHECK(((struct ifinfomsg *)NLMSG_DATA(first))->ifi_index == 1, "%s: another device", what);
	while (recv(fd, got, sizeof(got), 0) > 0)
		;
}

int main(int argc, char **argv)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(getpid()), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0xffff),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog program = { .len = 4, .filter = code };
	struct sock_filter zero[] = { BPF_STMT(BPF_RET | BPF_K, 0) };
	struct sock_fprog nothing = { .len = 1, .filter = zero };
	struct sockaddr_nl to = { .nl_family = AF_NETLINK };
	int route, fresh, strict, server, client, member, deaf;
	uint32_t ports[4];

	wl_init(argc, argv);
	route = netlink(SOCK_RAW, NETLINK_ROUTE, 0, 0);
	/* What really happens may not be left unread. */
	MUST(setsockopt(route, SOL_SOCKET, SO_ATTACH_FILTER, &nothing, sizeof(nothing)));
	to.nl_groups = RTMGRP_IPV4_ROUTE;
	MUST(bind(route, (struct sockaddr *)&to, sizeof(to)));
	to.nl_groups = 0;
	net_set(route, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 33 /* RTNLGRP_NEXTHOP and on */);
	net_set(route, SOL_NETLINK, NETLINK_EXT_ACK, 1);
	net_set(route, SOL_NETLINK, NETLINK_CAP_ACK, 1);
	net_set(route, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, 7);
	net_set(route, SOL_SOCKET, SO_RCVBUF, 50000);
	fresh = netlink(SOCK_RAW, NETLINK_ROUTE, 0, 0);
	strict = netlink(SOCK_DGRAM, NETLINK_ROUTE, 0, 0);
	net_set(strict, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
	net_set(strict, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
	lists_devices(strict, "the strict one");
	server = netlink(SOCK_RAW, NETLINK_USERSOCK, 1u << 31 | getpid(), 0);
	net_set(server, SOL_SOCKET, SO_PASSCRED, 1);
	client = netlink(SOCK_RAW, NETLINK_USERSOCK, 0, 0);
	to.nl_pid = 1u << 31 | getpid();
	MUST(connect(client, (struct sockaddr *)&to, sizeof(to)));
	member = netlink(SOCK_RAW, NETLINK_USERSOCK, 0, 0);
	MUST(setsockopt(member, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	to.nl_pid = 0;
	MUST(bind(member, (struct sockaddr *)&to, sizeof(to)));
	net_set(member, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, GROUP);
	net_set(member, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, FAR_GROUP);
	CHECK(port_of(member), "no port");
	deaf = netlink(SOCK_RAW, NETLINK_USERSOCK, 0, 0);
	to.nl_pid = 0;
	to.nl_groups = 1u << (FAR_GROUP - 1);
	MUST(connect(deaf, (struct sockaddr *)&to, sizeof(to)));
	for (int i = 0; i < 4; i++)
		ports[i] = port_of((int[]){ strict, server, client, member }[i]);

	wl_ready();
	if (wl_lose)
		net_set(member, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, FAR_GROUP);
	for (int i = 0; i < 4; i++)
		CHECK(ports[i] == port_of((int[]){ strict, server, client, member }[i]), "socket %d has another port", i);
	CHECK(net_get(route, SOL_NETLINK, NETLINK_EXT_ACK) == 1 && net_get(route, SOL_NETLINK, NETLINK_CAP_ACK) == 1,
	      "options of the first");
	CHECK(net_get(route, SOL_SOCKET, SO_RCVBUF) == 100000, "SO_RCVBUF");
	CHECK(net_get(strict, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM, "another type");
	CHECK(net_get(strict, SOL_NETLINK, NETLINK_GET_STRICT_CHK) == 1, "NETLINK_GET_STRICT_CHK");
	lists_devices(fresh, "one that was never used");
	lists_devices(strict, "the strict one");
	say(client, NULL, 0);
	hears(server, "who has a port", ports[2]);
	say(deaf, NULL, ECONNREFUSED);
	hears(member, "a member", port_of(deaf));
	/* Who is connected to the kernel and a group hears nobody else. */
	to.nl_groups = 0;
	to.nl_pid = port_of(deaf);
	say(server, &to, ECONNREFUSED);
	to.nl_pid = 0;
	to.nl_groups = 1u << (GROUP - 1);
	say(server, &to, ECONNREFUSED);
	hears(member, "a member of two groups", ports[1]);
	wl_ok();
}
