/* Netlink sockets as most programs have them: one that gets what happens to network devices, two that speak. */
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "net.h"

static struct sockaddr_nl name_of(int fd)
{
	struct sockaddr_nl name;
	socklen_t size = sizeof(name);

	MUST(getsockname(fd, (struct sockaddr *)&name, &size));
	return name;
}

int main(int argc, char **argv)
{
	struct sockaddr_nl to = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK }, names[2];
	/* What really happens is not waited for, nor may it be left unread. */
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, 0) };
	struct sock_fprog nothing = { .len = 1, .filter = code };
	int watcher, server, client;
	char got[32] = "";

	wl_init(argc, argv);
	watcher = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE));
	MUST(setsockopt(watcher, SOL_SOCKET, SO_ATTACH_FILTER, &nothing, sizeof(nothing)));
	MUST(bind(watcher, (struct sockaddr *)&to, sizeof(to)));
	server = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_USERSOCK));
	to.nl_groups = 0;
	MUST(bind(server, (struct sockaddr *)&to, sizeof(to)));
	names[0] = name_of(watcher);
	names[1] = name_of(server);
	client = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_USERSOCK));
	MUST(connect(client, (struct sockaddr *)&names[1], sizeof(names[1])));

	wl_ready();
	if (wl_lose)
		net_set(watcher, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, RTNLGRP_LINK);
	to = name_of(watcher);
	CHECK(memcmp(&to, &names[0], sizeof(to)) == 0, "port %u, groups %#x", to.nl_pid, to.nl_groups);
	to = name_of(server);
	CHECK(to.nl_pid == names[1].nl_pid, "port %u, not %u", to.nl_pid, names[1].nl_pid);
	MUST(send(client, "sixteen letters.", 16, 0));
	CHECK(recv(server, got, sizeof(got), 0) == 16 && memcmp(got, "sixteen letters.", 16) == 0, "it gets '%s'", got);
	wl_ok();
}
