// refused: there is a multicast route
// peer: no, CRIU 4.2 loses it without a word
/* A network namespace in which a routing daemon, this program, has set a multicast route. */
#include <arpa/inet.h>
#include <linux/mroute.h>
#include <sched.h>
#include <sys/socket.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct vifctl vif = { .vifc_vifi = 0, .vifc_flags = VIFF_USE_IFINDEX, .vifc_lcl_ifindex = 1 };
	struct mfcctl route = { .mfcc_parent = 0 };
	int daemon, on = 1;

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWNET));
	CHECK(system("ip link set lo up") == 0, "ip");
	daemon = MUST(socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_IGMP));
	if (setsockopt(daemon, IPPROTO_IP, MRT_INIT, &on, sizeof(on)) < 0)
		wl_fail("a kernel without multicast routes");
	MUST(setsockopt(daemon, IPPROTO_IP, MRT_ADD_VIF, &vif, sizeof(vif)));
	inet_pton(AF_INET, "10.0.0.1", &route.mfcc_origin);
	inet_pton(AF_INET, "239.1.1.1", &route.mfcc_mcastgrp);
	MUST(setsockopt(daemon, IPPROTO_IP, MRT_ADD_MFC, &route, sizeof(route)));
	wl_ready();
	if (wl_lose)
		MUST(setsockopt(daemon, IPPROTO_IP, MRT_DEL_MFC, &route, sizeof(route)));
	CHECK(system("ip mroute | grep -q 239.1.1.1") == 0, "the route is gone");
	wl_ok();
}
