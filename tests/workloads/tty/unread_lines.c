// peer: no, CRIU 4.2 loses it
/* Lines that nobody has read yet and one that is not finished, in canonical mode; the unfinished one can still be edited. */
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
	modes.c_lflag &= ~ECHO;
	MUST(tcsetattr(slave, TCSANOW, &modes));
	MUST(fcntl(slave, F_SETFL, O_NONBLOCK));
	MUST(write(master, "first\nsecond\nunfinixx", 21));
	wl_sleep_ms(20);

	wl_ready();
	if (wl_lose)
		MUST(read(slave, text, sizeof(text)));
	length = read(slave, text, sizeof(text));
	CHECK(length == 6 && memcmp(text, "first\n", 6) == 0, "the first line has %zd bytes: '%.6s'", length, text);
	length = read(slave, text, sizeof(text));
	CHECK(length == 7 && memcmp(text, "second\n", 7) == 0, "the second line has %zd bytes: '%.7s'", length, text);
	CHECK(read(slave, text, sizeof(text)) < 0 && errno == EAGAIN, "the unfinished line can be read");
	/* Two erase characters take the last two letters back. */
	MUST(write(master, "\177\177shed\n", 7));
	wl_sleep_ms(20);
	length = read(slave, text, sizeof(text));
	CHECK(length == 11 && memcmp(text, "unfinished\n", 11) == 0, "the edited line has %zd bytes: '%.20s'", length, text);
	wl_ok();
}
