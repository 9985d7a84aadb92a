/* A pseudo terminal, both sides in one process: size, modes, number, lock; it carries words both ways. */
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct winsize size = { 33, 101, 500, 700 }, size_now;
	struct termios modes, modes_now;
	int master, slave, number, number_now;
	char name[64], text[32] = "", link[64];
	ssize_t length;

	wl_init(argc, argv);
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	MUST(ptsname_r(master, name, sizeof(name)) ? -1 : 0);
	slave = MUST(open(name, O_RDWR | O_NOCTTY));
	MUST(ioctl(master, TIOCGPTN, &number));
	MUST(ioctl(slave, TIOCSWINSZ, &size));
	MUST(tcgetattr(slave, &modes));
	cfmakeraw(&modes);
	modes.c_cc[VMIN] = 3;
	modes.c_cc[VTIME] = 2;
	modes.c_cc[VINTR] = 7;
	modes.c_cflag |= PARENB;
	MUST(tcsetattr(slave, TCSANOW, &modes));
	MUST(tcgetattr(slave, &modes));

	wl_ready();
	if (wl_lose) {
		size.ws_col++;
		MUST(ioctl(slave, TIOCSWINSZ, &size));
		size.ws_col--;
	}
	MUST(ioctl(master, TIOCGWINSZ, &size_now));
	CHECK(memcmp(&size, &size_now, sizeof(size)) == 0, "the size is %d rows, %d columns, %d by %d", size_now.ws_row, size_now.ws_col, size_now.ws_xpixel,
	      size_now.ws_ypixel);
	MUST(tcgetattr(slave, &modes_now));
	CHECK(modes.c_iflag == modes_now.c_iflag && modes.c_oflag == modes_now.c_oflag && modes.c_cflag == modes_now.c_cflag &&
		      modes.c_lflag == modes_now.c_lflag && memcmp(modes.c_cc, modes_now.c_cc, NCCS) == 0,
	      "modes were %#o %#o %#o %#o, are %#o %#o %#o %#o", modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag, modes_now.c_iflag,
	      modes_now.c_oflag, modes_now.c_cflag, modes_now.c_lflag);
	MUST(ioctl(master, TIOCGPTN, &number_now));
	CHECK(number == number_now, "its number was %d, is %d", number, number_now);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", slave);
	length = MUST(readlink(link, text, sizeof(text) - 1));
	text[length] = 0;
	CHECK(strcmp(text, name) == 0, "the slave was %s, is %s", name, text);
	CHECK(fcntl(master, F_GETFL) & O_NONBLOCK && !(fcntl(slave, F_GETFL) & O_NONBLOCK), "flags are %#o and %#o", fcntl(master, F_GETFL),
	      fcntl(slave, F_GETFL));
	MUST(write(master, "to the slave", 12));
	CHECK(read(slave, text, sizeof(text)) == 12 && memcmp(text, "to the slave", 12) == 0, "the slave reads '%.12s'", text);
	MUST(write(slave, "back", 4));
	WAIT_FOR((length = read(master, text, sizeof(text))) > 0, "nothing comes back");
	CHECK(length == 4 && memcmp(text, "back", 4) == 0, "the master reads '%.12s'", text);
	wl_ok();
}
