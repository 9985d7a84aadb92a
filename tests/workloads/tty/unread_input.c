/* Input that nobody has read yet, on both sides of a pseudo terminal. */
#include <pty.h>
#include <termios.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct termios modes;
	int master, slave;
	char text[64] = "";
	ssize_t length;

	wl_init(argc, argv);
	MUST(openpty(&master, &slave, NULL, NULL, NULL));
	MUST(tcgetattr(slave, &modes));
	cfmakeraw(&modes);
	MUST(tcsetattr(slave, TCSANOW, &modes));
	MUST(fcntl(master, F_SETFL, O_NONBLOCK));
	MUST(fcntl(slave, F_SETFL, O_NONBLOCK));
	MUST(write(master, "typed ahead", 11));
	MUST(write(slave, "shown", 5));
	wl_sleep_ms(20);

	wl_ready();
	if (wl_lose)
		MUST(tcflush(slave, TCIFLUSH));
	length = read(slave, text, sizeof(text));
	CHECK(length == 11 && memcmp(text, "typed ahead", 11) == 0, "the slave finds %zd bytes: '%.11s'", length, text);
	length = read(master, text, sizeof(text));
	CHECK(length == 5 && memcmp(text, "shown", 5) == 0, "the master finds %zd bytes: '%.11s'", length, text);
	wl_ok();
}
