/* A session that holds its terminal's both sides by itself, as under `script`: its controlling terminal and foreground group. */
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "workload.h"

static volatile int resized;

static void handler(int signal)
{
	(void)signal;
	resized++;
}

int main(int argc, char **argv)
{
	struct winsize size = { 40, 90, 0, 0 };
	int master, slave;
	pid_t leader;

	wl_init(argc, argv);
	leader = wl_fork();
	if (leader == 0) {
		MUST(setsid());
		MUST(openpty(&master, &slave, NULL, NULL, NULL));
		MUST(ioctl(slave, TIOCSCTTY, 0));
		signal(SIGWINCH, handler);
		wl_child_ready();
		wl_wait();
		if (wl_lose) {
			signal(SIGHUP, SIG_IGN);
			MUST(ioctl(slave, TIOCNOTTY));
		}
		CHECK(tcgetsid(slave) == getpid() && tcgetpgrp(slave) == getpid(), "session %d, foreground group %d", tcgetsid(slave), tcgetpgrp(slave));
		close(MUST(open("/dev/tty", O_RDWR)));
		/* A new size of the terminal is told to the foreground group of its session. */
		MUST(ioctl(master, TIOCSWINSZ, &size));
		WAIT_FOR(resized, "no SIGWINCH comes");
		_exit(0);
	}
	wl_ready();
	wl_join(leader);
	wl_ok();
}
