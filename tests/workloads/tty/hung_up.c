// peer: no, CRIU 4.2 makes a peer for a terminal that has none
/* A slave whose master is closed: it has hung up, and stays so. */
#include <poll.h>
#include <pty.h>
#include <termios.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int master, slave, other_master, other_slave;
	struct pollfd watched;
	char byte;

	wl_init(argc, argv);
	MUST(openpty(&master, &slave, NULL, NULL, NULL));
	MUST(openpty(&other_master, &other_slave, NULL, NULL, NULL));
	MUST(close(master));
	MUST(fcntl(other_master, F_SETFL, O_NONBLOCK));
	/* And the other way round: a master without any slave. */
	MUST(close(other_slave));

	wl_ready();
	if (wl_lose)
		MUST(openpty(&other_master, &slave, NULL, NULL, NULL));
	watched = (struct pollfd){ slave, POLLIN, 0 };
	CHECK(poll(&watched, 1, 0) == 1 && (watched.revents & POLLHUP), "the slave has not hung up: %#x", watched.revents);
	CHECK(read(slave, &byte, 1) == 0, "the slave gives something");
	CHECK(write(slave, "x", 1) < 0 && errno == EIO, "the slave takes something");
	CHECK(read(other_master, &byte, 1) < 0 && errno == EIO, "the master without slave gives something");
	wl_ok();
}
