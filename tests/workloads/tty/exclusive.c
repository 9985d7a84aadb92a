// peer: no, CRIU 4.2 loses it
/* A slave in exclusive mode. */
#include <pty.h>
#include <sys/ioctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int master, slave, now = 0;

	wl_init(argc, argv);
	MUST(openpty(&master, &slave, NULL, NULL, NULL));
	MUST(ioctl(slave, TIOCEXCL));

	wl_ready();
	if (wl_lose)
		MUST(ioctl(slave, TIOCNXCL));
	MUST(ioctl(slave, TIOCGEXCL, &now));
	CHECK(now == 1, "the slave is no longer exclusive");
	wl_ok();
}
