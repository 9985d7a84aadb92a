// peer: no, CRIU 4.2 refuses a slave that both a session and its parent hold
/* Terminals by their several doors: /dev/ptmx, the slave's own name opened twice, /dev/tty in a session that has one. */
#include <pty.h>
#include <termios.h>

#include "workload.h"

int main(int argc, char **argv)
{
	int master, first, second;
	char name[64], text[16] = "";
	struct termios modes;
	pid_t child;

	wl_init(argc, argv);
	master = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
	MUST(unlockpt(master));
	MUST(ptsname_r(master, name, sizeof(name)) ? -1 : 0);
	first = MUST(open(name, O_RDWR | O_NOCTTY));
	second = MUST(open(name, O_WRONLY | O_NOCTTY | O_NONBLOCK));
	MUST(tcgetattr(first, &modes));
	cfmakeraw(&modes);
	MUST(tcsetattr(first, TCSANOW, &modes));
	child = wl_fork();
	if (child == 0) {
		int terminal;

		MUST(setsid());
		MUST(close(MUST(open(name, O_RDWR))));
		terminal = MUST(open("/dev/tty", O_RDWR));
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("named"), F_OK) == 0, "the parent does not write");
		CHECK(write(terminal, "by /dev/tty", 11) == 11, "/dev/tty is dead: %s", strerror(errno));
		MUST(close(MUST(open("/dev/tty", O_RDWR))));
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(dup2(MUST(open("/dev/null", O_WRONLY)), second));
	MUST(write(second, "by name", 7));
	CHECK(fcntl(second, F_GETFL) & O_NONBLOCK && !(fcntl(first, F_GETFL) & O_NONBLOCK), "flags are mixed up");
	MUST(fcntl(master, F_SETFL, O_NONBLOCK));
	CHECK(read(master, text, 7) == 7 && memcmp(text, "by name", 7) == 0, "the master reads '%.7s'", text);
	MUST(close(MUST(creat(wl_path("named"), 0666))));
	WAIT_FOR(read(master, text, 11) == 11, "nothing comes by /dev/tty");
	CHECK(memcmp(text, "by /dev/tty", 11) == 0, "the master reads '%.11s'", text);
	wl_join(child);
	wl_ok();
}
