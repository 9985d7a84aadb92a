// peer: no, CRIU 4.2 lets it count as its protection says
/* Memory that counts against the commit limit although it cannot be written to, and memory that does not (VmFlags ac). */
#include "workload.h"

#define SIZE (64 * 1024)

/* Whether the mapping at an address counts. */
static bool counts(const void *at)
{
	char line[4096];
	FILE *smaps = fopen("/proc/self/smaps", "re");
	bool inside = false, found = false;
	unsigned long start, end;

	CHECK(smaps, "/proc/self/smaps: %s", strerror(errno));
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (unsigned long)at && (unsigned long)at < end;
		else if (inside && strncmp(line, "VmFlags:", 8) == 0)
			found = strstr(line, " ac") != NULL;
	}
	fclose(smaps);
	return found;
}

/* Apart from others, so that it is a mapping of its own. */
static char *map(int prot, int flags, int fd)
{
	char *at = MUST(mmap(NULL, SIZE + 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	return MUST(mmap(at + 4096, SIZE, prot, MAP_PRIVATE | MAP_FIXED | flags, fd, 0));
}

int main(int argc, char **argv)
{
	enum { EMPTIED, EMPTIED_READABLE, UNTOUCHED, WRITTEN, OF_FILE, NEVER, COUNT };
	const int writable = PROT_READ | PROT_WRITE;
	bool before[COUNT];
	char *all[COUNT];
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(ftruncate(fd, SIZE));
	for (int which = EMPTIED; which <= WRITTEN; which++) {
		all[which] = map(writable, MAP_ANONYMOUS, -1);
		if (which != UNTOUCHED)
			memset(all[which], 'x', SIZE);
		if (which <= EMPTIED_READABLE)
			MUST(madvise(all[which], SIZE, MADV_DONTNEED));
		MUST(mprotect(all[which], SIZE, which == EMPTIED_READABLE ? PROT_READ : PROT_NONE));
	}
	all[OF_FILE] = map(writable, 0, fd);
	MUST(mprotect(all[OF_FILE], SIZE, PROT_READ));
	all[NEVER] = map(PROT_READ, MAP_ANONYMOUS, -1);
	for (int which = 0; which < COUNT; which++)
		before[which] = counts(all[which]);
	CHECK(before[EMPTIED] && before[WRITTEN] && before[OF_FILE] && !before[NEVER], "this kernel counts in another way");
	wl_ready();
	if (wl_lose)
		MUST(mmap(all[EMPTIED], SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	for (int which = 0; which < COUNT; which++)
		CHECK(counts(all[which]) == before[which], "mapping %d %s", which, before[which] ? "no longer counts" : "counts now");
	wl_ok();
}
