// peer: no, CRIU 4.2 loses it when another session holds the slave as well
/* A child session with a controlling terminal: its session and foreground group; ^C reaches that group and no other. */
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "workload.h"

static volatile int interrupted;

static void handler(int signal)
{
	(void)signal;
	interrupted++;
}

/* In the new session: its leader in the background, its child in the foreground group. */
static void session(const char *name)
{
	pid_t foreground;
	int terminal;

	MUST(setsid());
	/* Opened by a session leader without terminal, it becomes its controlling one. */
	terminal = MUST(open(name, O_RDWR));
	signal(SIGINT, handler);
	signal(SIGTTOU, SIG_IGN);
	foreground = wl_fork();
	if (foreground == 0) {
		MUST(setpgid(0, 0));
		MUST(tcsetpgrp(terminal, getpid()));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(tcsetpgrp(terminal, getppid()));
		CHECK(tcgetpgrp(terminal) == getpid() && tcgetsid(terminal) == getppid(), "foreground group %d, session %d", tcgetpgrp(terminal),
		      tcgetsid(terminal));
		close(MUST(open("/dev/tty", O_RDWR)));
		WAIT_FOR(interrupted == 1, "^C does not reach the foreground group");
		_exit(0);
	}
	wl_child_ready();
	wl_wait();
	wl_join(foreground);
	CHECK(interrupted == 0, "^C reached the background");
	_exit(0);
}

int main(int argc, char **argv)
{
	int master, slave;
	char name[64];
	pid_t leader;

	wl_init(argc, argv);
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(grantpt(master));
	MUST(unlockpt(master));
	MUST(ptsname_r(master, name, sizeof(name)) ? -1 : 0);
	slave = MUST(open(name, O_RDWR | O_NOCTTY));
	leader = wl_fork();
	if (leader == 0)
		session(name);

	wl_ready();
	CHECK(open("/dev/tty", O_RDWR) < 0 && errno == ENXIO, "the root process has got a controlling terminal");
	/* Let the checks before it run first. */
	wl_sleep_ms(50);
	MUST(write(master, "\003", 1));
	wl_join(leader);
	(void)slave;
	wl_ok();
}
