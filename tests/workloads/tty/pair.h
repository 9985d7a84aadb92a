/* A pseudo terminal whose slave has other modes than a new one. */
#ifndef PAIR_H
#define PAIR_H

#include <pty.h>
#include <termios.h>

#include "workload.h"

struct pair {
	int master, slave;
};

static struct pair pair_open(void (*change)(struct termios *modes))
{
	struct termios modes;
	struct pair pair;

	MUST(openpty(&pair.master, &pair.slave, NULL, NULL, NULL));
	MUST(tcgetattr(pair.slave, &modes));
	change(&modes);
	MUST(tcsetattr(pair.slave, TCSANOW, &modes));
	MUST(fcntl(pair.slave, F_SETFL, O_NONBLOCK));
	return pair;
}

/* What an end must have to read now. */
WL_UNUSED static void pair_gives(int end, const char *what, const char *expected)
{
	char text[64] = "";
	ssize_t length = read(end, text, sizeof(text) - 1);

	CHECK(length == (ssize_t)strlen(expected) && strcmp(text, expected) == 0, "%s has %zd bytes: '%s'", what, length, text);
}

#endif
