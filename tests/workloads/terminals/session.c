// peer: no, the master belongs to another session than the slave (refused: ctty inheritance)
/* A session has a terminal whose master is outside of it: foreground group, /dev/tty, and whom an interrupt reaches. */
#include "terminals.h"
#include <sys/sysmacros.h>
#include <termios.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
	(void)signal;
	interrupted = 1;
}

/* The foreground of the session: ends with the interrupt. */
static void foreground(int tty)
{
	MUST(setpgid(0, 0));
	signal(SIGTTOU, SIG_IGN);
	MUST(tcsetpgrp(tty, getpid()));
	wl_child_ready();
	WAIT_FOR(interrupted || wl_told_to_go(), "nothing happened");
	wl_wait();
	WAIT_FOR(interrupted, "the interrupt did not reach the foreground");
	_exit(0);
}

static void lead(int slave)
{
	struct stat named;
	pid_t in_front;
	int tty, again;

	MUST(setsid());
	MUST(ioctl(slave, TIOCSCTTY, 0));
	tty = MUST(open("/dev/tty", O_RDWR | O_CLOEXEC));
	in_front = wl_fork();
	if (in_front == 0)
		foreground(tty);
	wl_child_ready();
	wl_wait();
	if (wl_lose) {
		signal(SIGHUP, SIG_IGN);
		MUST(ioctl(tty, TIOCNOTTY));
	}
	CHECK(tcgetsid(slave) == getpid(), "the terminal is of session %d, not of ours", tcgetsid(slave));
	CHECK(tcgetpgrp(tty) == in_front, "group %d is in the foreground, not %d", tcgetpgrp(tty), in_front);
	MUST(fstat(tty, &named));
	CHECK(named.st_rdev == makedev(5, 0), "/dev/tty has become device %u:%u", major(named.st_rdev), minor(named.st_rdev));
	again = open("/dev/tty", O_RDWR | O_CLOEXEC);
	CHECK(again >= 0, "/dev/tty cannot be opened: %s", strerror(errno));
	signal(SIGTTOU, SIG_IGN);
	CHECK(write(again, "here\n", 5) == 5, "write to /dev/tty: %s", strerror(errno));
	wl_join(in_front);
	CHECK(!interrupted, "the interrupt reached the background");
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_interrupt, .sa_flags = SA_RESTART };
	char line[64] = "";
	int master, slave;
	pid_t child;
	ssize_t n;

	wl_init(argc, argv);
	MUST(sigaction(SIGINT, &action, NULL));
	master = wl_open_master();
	slave = MUST(open(ptsname(master), O_RDWR | O_NOCTTY));
	child = wl_fork();
	if (child == 0) {
		close(master);
		lead(slave);
	}
	close(slave);
	wl_ready();
	/* The end of the line is put there by itself. */
	for (n = 0; n < 6; )
		n += MUST(read(master, line + n, sizeof(line) - 1 - n));
	CHECK(n == 6 && strcmp(line, "here\r\n") == 0, "the master read '%s'", line);
	MUST(write(master, "\003", 1));
	wl_join(child);
	wl_ok();
}
