// differs: process ns.net, the number of a namespace, of which the kernel gives each another
// checkpoint-flags: --tcp-established
// peer: no, CRIU runs ip(8) and iptables(8) for it, and loses what these do not save
/*
 * A process that has a network namespace of its own, with a pair of devices of which one is a port of a bridge, addresses,
 * routes in several tables, rules, a neighbour, settings, rules of nftables, and a connection of TCP over it all; and a
 * child with another, which a second pair leads to.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>

#include "workload.h"

/* What describes it all, in words that do not change by themselves. */
static const char *const SHOW[] = {
	"ip -o link | sed 's/qdisc [^ ]* //'",
	"ip -o -d link show type bridge | grep -o 'forward_delay [0-9]*\\|stp_state [0-9]*\\|ageing_time [0-9]*'",
	"ip -o addr | sed 's/[0-9]*sec/sec/g'",
	"ip route show table all | sort",
	"ip -6 route show table all | sort",
	"ip rule; ip -6 rule",
	"ip neigh show nud permanent",
	"ip netns list-id",
	"cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/wlbr0/rp_filter /proc/sys/net/core/somaxconn",
	"cat /proc/sys/net/ipv6/conf/wlbr0/hop_limit /proc/sys/net/ipv4/ip_local_port_range",
	"cat /proc/sys/net/ipv4/conf/default/arp_ignore /proc/sys/net/ipv4/conf/lo/arp_ignore /proc/sys/net/ipv6/conf/lo/mtu",
	"nft list ruleset",
};

static void run(const char *command)
{
	int status = system(command);

	if (status != 0)
		wl_fail("%s: %x", command, status);
}

/* What all commands say. */
static char *show(void)
{
	size_t room = 1 << 18, got = 0;
	char *all = malloc(room);
	unsigned i;

	for (i = 0; i < sizeof(SHOW) / sizeof(SHOW[0]); i++) {
		FILE *from = popen(SHOW[i], "r");

		got += fread(all + got, 1, room - got - 1, from);
		pclose(from);
	}
	all[got] = 0;
	return all;
}

static void same(const char *before, const char *who)
{
	char *now = show();
	const char *a = before, *b = now;

	/* The first line that differs. */
	while (*a && *b && strcspn(a, "\n") == strcspn(b, "\n") && strncmp(a, b, strcspn(a, "\n")) == 0) {
		a += strcspn(a, "\n") + (a[strcspn(a, "\n")] != 0);
		b += strcspn(b, "\n") + (b[strcspn(b, "\n")] != 0);
	}
	CHECK(*a == 0 && *b == 0, "%s: '%.*s' has become '%.*s'", who, (int)strcspn(a, "\n"), a, (int)strcspn(b, "\n"), b);
	free(now);
}

static struct sockaddr_in at(const char *address, int port)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};

	inet_pton(AF_INET, address, &name.sin_addr);
	return name;
}

int main(int argc, char **argv)
{
	struct sockaddr_in name = at("10.97.1.2", 8000);
	int pipes[2], listener, client, server, one = 1;
	char byte = 0, command[128], *before;
	pid_t child;

	wl_init(argc, argv);
	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	MUST(unshare(CLONE_NEWNET));
	MUST(pipe(pipes));
	child = MUST(fork());
	if (child == 0) {
		MUST(unshare(CLONE_NEWNET));
		MUST(write(pipes[1], "x", 1));
		while (system("ip link show wlfar >/dev/null 2>&1") != 0)
			usleep(10000);
		run("ip link set lo up; ip link set wlfar up; ip -6 addr flush dev wlfar; ip addr add 10.97.1.2/24 dev wlfar");
		run("ip route add default via 10.97.1.1");
		listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
		MUST(bind(listener, (struct sockaddr *)&name, sizeof(name)));
		MUST(listen(listener, 5));
		MUST(write(pipes[1], "y", 1));
		server = MUST(accept(listener, NULL, NULL));
		MUST(read(server, &byte, 1));
		usleep(2500000);
		before = show();
		MUST(write(pipes[1], "z", 1));
		wl_wait();
		same(before, "the child's");
		MUST(write(server, "b", 1));
		MUST(read(server, &byte, 1));
		CHECK(byte == 'c', "the client has sent %d", byte);
		_exit(0);
	}
	MUST(read(pipes[0], &byte, 1));
	run("ip link set lo up");
	run("ip link add wlbr0 type bridge forward_delay 200 ageing_time 12300");
	run("ip link add wlv0 type veth peer name wlv1");
	snprintf(command, sizeof(command), "ip link add wlnear mtu 1400 type veth peer name wlfar netns %d", child);
	run(command);
	run("ip link set wlv1 master wlbr0; ip link set wlv0 up; ip link set wlv1 up; ip link set wlbr0 up");
	run("ip link set wlnear up; ip addr add 10.97.1.1/24 dev wlnear; ip link set wlnear alias 'to the child'");
	run("ip addr add 10.97.0.1/24 dev wlbr0; ip addr add 10.97.0.2/24 dev wlv0 label wlv0:x");
	run("ip -6 addr add fd97::1/64 dev wlbr0 nodad");
	run("ip link add wlmac link wlv0 type macvlan mode bridge; ip link set wlmac up");
	run("ip route add 10.98.0.0/16 via 10.97.0.9; ip route add default via 10.97.0.254 metric 100");
	run("ip route add 10.99.0.0/16 nexthop via 10.97.0.7 weight 2 nexthop via 10.97.0.8");
	run("ip route add 10.96.0.0/16 via 10.97.0.9 table 77; ip route add blackhole 10.95.0.0/16");
	run("ip -6 route add fd98::/64 via fd97::9");
	run("ip rule add from 10.97.0.3 table 77 priority 500; ip rule add fwmark 0x5 lookup 77");
	run("ip rule del priority 32767; ip -6 rule add from fd97::1 table 78 priority 600");
	run("ip neigh add 10.97.0.50 lladdr 02:00:00:00:00:05 dev wlbr0 nud permanent");
	run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 2 >/proc/sys/net/ipv4/conf/wlbr0/rp_filter");
	run("echo 777 >/proc/sys/net/core/somaxconn; echo 33 >/proc/sys/net/ipv6/conf/wlbr0/hop_limit");
	run("echo 5 >/proc/sys/net/ipv4/conf/default/arp_ignore; echo 0 >/proc/sys/net/ipv4/conf/lo/arp_ignore");
	run("echo 1300 >/proc/sys/net/ipv6/conf/lo/mtu");
	run("echo 20000 30000 >/proc/sys/net/ipv4/ip_local_port_range");
	run("nft add table inet wl; nft add set inet wl some '{ type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }'");
	run("nft add chain inet wl in '{ type filter hook input priority 0; policy accept; }'");
	run("nft add rule inet wl in ip saddr @some tcp dport '{ 81, 443 }' drop");
	MUST(read(pipes[0], &byte, 1));
	client = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(client, (struct sockaddr *)&name, sizeof(name)));
	MUST(write(client, "a", 1));
	/* Until the kernel has looked for others with its addresses, which takes some seconds. */
	MUST(read(pipes[0], &byte, 1));
	before = show();
	wl_ready();
	if (wl_lose)
		run("ip route del blackhole 10.95.0.0/16");
	same(before, "the parent's");
	MUST(read(client, &byte, 1));
	CHECK(byte == 'b', "the server has sent %d", byte);
	MUST(write(client, "c", 1));
	wl_join(child);
	wl_ok();
}
