// refused: nobody can send again
// peer: no, it loses them
/* An answer of the kernel that was not read. */
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "net.h"

int main(int argc, char **argv)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg body;
	} ask = { { sizeof(ask), RTM_GETLINK, NLM_F_REQUEST, 7, 0 }, { .ifi_family = AF_UNSPEC, .ifi_index = 1 } };
	static char got[65536];
	int fd;

	wl_init(argc, argv);
	fd = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	MUST(send(fd, &ask, sizeof(ask), 0));

	wl_ready();
	if (wl_lose)
		MUST(recv(fd, got, sizeof(got), 0));
	CHECK(recv(fd, got, sizeof(got), MSG_DONTWAIT) > 0, "the answer is not there");
	wl_ok();
}
