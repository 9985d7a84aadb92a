/* For workloads about pages that processes share until one of them writes. */
#ifndef FRAME_H
#define FRAME_H

#include "workload.h"

/* The physical page behind an address of a process (/proc/PID/pagemap, bits 0-54), 0 if there is none. */
static uint64_t frame(pid_t pid, const uint8_t *address)
{
	char path[64];
	uint64_t entry = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	MUST(pread(fd, &entry, 8, (unsigned long)address / 4096 * 8));
	close(fd);
	return entry & ((1ull << 55) - 1);
}

#endif
