// refused: IPsec policies of its own
// peer: no, what is refused is not asked of it
/* A socket with a policy of IPsec of its own. */
#include "net.h"

#include <linux/xfrm.h>

int main(int argc, char **argv)
{
	struct xfrm_userpolicy_info policy = {
		.sel = { .family = AF_INET },
		.lft = { XFRM_INF, XFRM_INF, XFRM_INF, XFRM_INF },
		.dir = XFRM_POLICY_OUT,
		.action = XFRM_POLICY_BLOCK,
	};
	struct sockaddr_storage address;
	int fd;

	wl_init(argc, argv);
	fd = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	MUST(setsockopt(fd, IPPROTO_IP, IP_XFRM_POLICY, &policy, sizeof(policy)));

	wl_ready();
	if (wl_lose)
		close(fd), fd = net_bound(AF_INET, SOCK_DGRAM, 0, 0);
	address = net_loopback(AF_INET, 9);
	CHECK(connect(fd, (struct sockaddr *)&address, net_size(AF_INET)) < 0 && errno == EPERM, "nothing keeps it from sending");
	wl_ok();
}
