// refused: there is a policy of IPsec
// peer: no, CRIU 4.2 loses it without a word
/* A network namespace with a policy of IPsec. */
#include <sched.h>

#include "workload.h"

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWNET));
	CHECK(system("ip xfrm policy add src 10.0.0.1 dst 10.0.0.2 dir out action block") == 0, "ip xfrm");
	wl_ready();
	if (wl_lose)
		CHECK(system("ip xfrm policy flush") == 0, "ip xfrm");
	CHECK(system("ip xfrm policy | grep -q block") == 0, "the policy is gone");
	wl_ok();
}
