/* What madvise(2) has been told about mappings, as smaps shows it. */
#include <sys/prctl.h>

#include "workload.h"

static const struct {
	int advice;
	const char *flag;
} advices[] = {
	{ MADV_DONTFORK, "dc" }, { MADV_DONTDUMP, "dd" }, { MADV_SEQUENTIAL, "sr" }, { MADV_RANDOM, "rr" },
	{ MADV_HUGEPAGE, "hg" }, { MADV_NOHUGEPAGE, "nh" }, { MADV_WIPEONFORK, "wf" },
};
#define COUNT ((int)(sizeof(advices) / sizeof(advices[0])))

int main(int argc, char **argv)
{
	char before[COUNT + 1][512];
	uint8_t *maps[COUNT + 1];
	pid_t child;

	wl_init(argc, argv);
	for (int i = 0; i <= COUNT; i++) {
		maps[i] = MUST(mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		/* Keep neighbours from being merged. */
		MUST(munmap(maps[i] + 4 * 4096, 4096));
		wl_fill(maps[i], 4 * 4096, i);
		if (i < COUNT)
			MUST(madvise(maps[i], 4 * 4096, advices[i].advice));
	}
	for (int i = 0; i <= COUNT; i++) {
		snprintf(before[i], sizeof(before[i]), "%s", wl_mapping(maps[i], "VmFlags:"));
		if (i < COUNT)
			CHECK(wl_has_vmflag(maps[i], advices[i].flag), "advice %d shows no flag %s", advices[i].advice, advices[i].flag);
	}

	wl_ready();
	if (wl_lose)
		MUST(madvise(maps[1], 4 * 4096, MADV_DODUMP));
	for (int i = 0; i <= COUNT; i++) {
		const char *now = wl_mapping(maps[i], "VmFlags:");

		/* The last bit of bookkeeping, "sd" (soft-dirty), is no advice. */
		CHECK(strncmp(now, before[i], strcspn(before[i], "\n")) == 0, "flags of mapping %d were '%s', are '%s'", i, before[i], now);
		CHECK(wl_differs(maps[i], 4 * 4096, i) < 0, "contents of mapping %d differ", i);
	}
	child = MUST(fork());
	if (child == 0)
		_exit(maps[6][0] == 0 ? 0 : 1);
	wl_join(child);
	wl_ok();
}
