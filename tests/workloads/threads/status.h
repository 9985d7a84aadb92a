/* What the kernel says of a thread (/proc/thread-self/status). */
#ifndef STATUS_H
#define STATUS_H

#include "workload.h"

/* The lines about credentials, each behind a newline. */
#define ABOUT_CREDENTIALS "\nUid:", "\nGid:", "\nGroups:", "\nCapInh:", "\nCapPrm:", "\nCapEff:", "\nCapBnd:", "\nCapAmb:"

/* Those of the calling thread's lines that begin with one of the fields; the last field is NULL. */
WL_UNUSED static void status_lines(char *text, size_t size, const char *const *fields)
{
	char status[8192];
	size_t used = 0;

	wl_read_file("/proc/thread-self/status", status, sizeof(status));
	for (; *fields; fields++) {
		char *line = strstr(status, *fields);

		if (line)
			used += snprintf(text + used, size - used, "%.*s", (int)strcspn(line + 1, "\n") + 1, line);
	}
}

#endif
