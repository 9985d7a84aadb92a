/* A master in packet mode. */
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int master, slave, on = 1, now = 0;
	struct termios modes;
	char text[16] = "";

	wl_init(argc, argv);
	MUST(openpty(&master, &slave, NULL, NULL, NULL));
	MUST(tcgetattr(slave, &modes));
	cfmakeraw(&modes);
	MUST(tcsetattr(slave, TCSANOW, &modes));
	MUST(ioctl(master, TIOCPKT, &on));

	wl_ready();
	if (wl_lose)
		MUST(ioctl(master, TIOCPKT, &(int){ 0 }));
	MUST(ioctl(master, TIOCGPKT, &now));
	CHECK(now == 1, "packet mode is lost");
	MUST(write(slave, "abc", 3));
	CHECK(read(master, text, sizeof(text)) == 4 && text[0] == 0 && memcmp(text + 1, "abc", 3) == 0, "the master reads %d '%.3s'", text[0], text + 1);
	wl_ok();
}
