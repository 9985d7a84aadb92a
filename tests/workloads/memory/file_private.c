/* A private file mapping: written pages keep what was written, the others show the file; the file stays as it is. */
#include "workload.h"

#define PAGES 20

int main(int argc, char **argv)
{
	static uint8_t content[PAGES * 4096], now[PAGES * 4096];
	uint8_t *map, *tail;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	wl_fill(content, sizeof(content), 1);
	MUST(write(fd, content, sizeof(content)));
	map = MUST(mmap(NULL, sizeof(content), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	/* A second mapping starts in the middle of the file and has no descriptor any more. */
	tail = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 8 * 4096));
	MUST(close(fd));
	for (int page = 0; page < PAGES; page += 3)
		wl_fill(map + page * 4096, 4096, 100 + page);
	tail[4096] = 77;

	wl_ready();
	if (wl_lose)
		MUST(madvise(map, sizeof(content), MADV_DONTNEED));
	for (int page = 0; page < PAGES; page++) {
		bool written = page % 3 == 0;
		const uint8_t *at = map + page * 4096;

		if (written)
			CHECK(wl_differs(at, 4096, 100 + page) < 0, "written page %d is lost", page);
		else
			CHECK(memcmp(at, content + page * 4096, 4096) == 0, "unwritten page %d differs", page);
	}
	CHECK(tail[0] == content[8 * 4096] && tail[4096] == 77, "the mapping from the middle differs");
	fd = MUST(open(wl_path("file"), O_RDWR));
	MUST(read(fd, now, sizeof(now)));
	CHECK(memcmp(now, content, sizeof(now)) == 0, "the file was changed");
	/* Unwritten pages still belong to the file. */
	MUST(pwrite(fd, "Z", 1, 5 * 4096));
	CHECK(map[5 * 4096] == 'Z', "an unwritten page no longer shows the file");
	wl_ok();
}
