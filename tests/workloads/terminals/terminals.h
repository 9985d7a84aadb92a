/* Ptys for workloads that run beside each other. */
#ifndef TERMINALS_H
#define TERMINALS_H

#include "workload.h"
#include <sys/ioctl.h>

/*
 * Opens the master of a pty, unlocked. A new pty has the lowest number that is free, and a restore needs the same
 * number: one that is unlikely to be taken meanwhile by others.
 */
WL_UNUSED static int wl_open_master(void)
{
	int masters[256], count = 0;
	unsigned number, wanted = 40 + getpid() % 150;

	do {
		masters[count] = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
		MUST(ioctl(masters[count], TIOCGPTN, &number));
	} while (number < wanted && ++count < 255);
	for (int i = 0; i < count; i++)
		close(masters[i]);
	MUST(unlockpt(masters[count]));
	return masters[count];
}

#endif
