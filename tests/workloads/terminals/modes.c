// peer: no, it puts unread output back with a carriage return too many
/* A pty by its number, settings, size, packet mode, lock, and what stands unread at either end. */
#include "terminals.h"
#include <poll.h>
#include <termios.h>

static void demand(int fd, const char *expected)
{
	char got[256] = "";
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	ssize_t n;

	CHECK(poll(&ready, 1, 2000) == 1, "nothing to read, but for '%s'", expected);
	n = MUST(read(fd, got, sizeof(got) - 1));
	CHECK((size_t)n == strlen(expected) && memcmp(got, expected, n) == 0, "read '%s', not '%s'", got, expected);
}

int main(int argc, char **argv)
{
	struct winsize size = { 33, 77, 5, 6 }, now_size;
	struct termios settings, now;
	char *name, was[64];
	int master, slave, locked, value, on = 1;
	unsigned number;

	wl_init(argc, argv);
	master = wl_open_master();
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	snprintf(was, sizeof(was), "%s", ptsname(master));
	MUST(tcgetattr(slave, &settings));
	settings.c_cc[VINTR] = 7;
	settings.c_cc[VEOL2] = '#';
	settings.c_lflag &= ~ECHO;
	settings.c_iflag |= IUTF8;
	MUST(tcsetattr(slave, TCSANOW, &settings));
	MUST(ioctl(slave, TIOCSWINSZ, &size));
	MUST(ioctl(master, TIOCPKT, &on));
	MUST(write(slave, "out\n", 4));
	MUST(write(master, "one\ntwo#three\004", 14));
	locked = wl_open_master();
	MUST(ioctl(locked, TIOCSPTLCK, &on));
	MUST(fcntl(locked, F_SETFL, O_NONBLOCK));
	MUST(ioctl(locked, TIOCGPTN, &number));
	/* The kernel hands written bytes over in its own time. */
	WAIT_FOR(ioctl(slave, FIONREAD, &value) == 0 && value == 13, "the slave has %d bytes to read", value);
	WAIT_FOR(ioctl(master, FIONREAD, &value) == 0 && value == 5, "the master has %d bytes to read", value);
	wl_ready();
	if (wl_lose)
		MUST(tcflush(slave, TCIOFLUSH));

	name = ptsname(master);
	CHECK(name && strcmp(name, was) == 0, "%s has become %s", was, name ? name : "nothing");
	MUST(tcgetattr(slave, &now));
	CHECK(now.c_iflag == settings.c_iflag && now.c_oflag == settings.c_oflag && now.c_cflag == settings.c_cflag &&
		      now.c_lflag == settings.c_lflag && memcmp(now.c_cc, settings.c_cc, sizeof(now.c_cc)) == 0,
	      "the settings have changed");
	MUST(ioctl(master, TIOCGWINSZ, &now_size));
	CHECK(memcmp(&now_size, &size, sizeof(size)) == 0, "the size is %u times %u", now_size.ws_row, now_size.ws_col);
	MUST(ioctl(master, TIOCGPKT, &value));
	CHECK(value == 1, "the master is not in packet mode any more");
	value = 0;
	MUST(ioctl(master, TIOCPKT, &value));
	demand(master, "out\r\n");
	demand(slave, "one\n");
	demand(slave, "two#");
	demand(slave, "three");
	MUST(ioctl(locked, TIOCGPTLCK, &value));
	CHECK(value == 1, "the other pty is not locked any more");
	MUST(ioctl(locked, TIOCGPTN, &value));
	CHECK((unsigned)value == number, "/dev/pts/%u has become %d", number, value);
	CHECK(read(locked, was, 1) == -1 && errno == EAGAIN, "a pty that was never opened answers %s", strerror(errno));
	wl_ok();
}
