/* Input that nobody has read yet, on both sides of a pseudo terminal. */
#include "pair.h"

int main(int argc, char **argv)
{
	struct pair pair;

	wl_init(argc, argv);
	pair = pair_open(cfmakeraw);
	MUST(fcntl(pair.master, F_SETFL, O_NONBLOCK));
	MUST(write(pair.master, "typed ahead", 11));
	MUST(write(pair.slave, "shown", 5));
	wl_sleep_ms(20);

	wl_ready();
	if (wl_lose)
		MUST(tcflush(pair.slave, TCIFLUSH));
	pair_gives(pair.slave, "the slave", "typed ahead");
	pair_gives(pair.master, "the master", "shown");
	wl_ok();
}
