/* Three thousand mappings side by side, kept apart by their protections. */
#include "workload.h"

#define COUNT 3000

static unsigned count_lines(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned lines = 0;
	int c;

	while ((c = fgetc(maps)) != EOF)
		lines += c == '\n';
	fclose(maps);
	return lines;
}

int main(int argc, char **argv)
{
	unsigned before;
	uint8_t *map;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, COUNT * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < COUNT; i++) {
		map[i * 4096 + i % 4096] = i % 251 + 1;
		if (i % 2)
			MUST(mprotect(map + i * 4096, 4096, PROT_READ));
	}
	count_lines();
	before = count_lines();

	wl_ready();
	if (wl_lose)
		MUST(mprotect(map, 4 * 4096, PROT_READ));
	for (int i = 0; i < COUNT; i++)
		CHECK(map[i * 4096 + i % 4096] == i % 251 + 1, "page %d differs", i);
	CHECK(count_lines() == before, "there were %u mappings, there are %u", before, count_lines());
	CHECK(wl_faults((char *)map + 4096, true) && !wl_faults((char *)map, true), "protections are mixed up");
	wl_ok();
}
