/*
 * Shared file mappings: writes go to the file, offsets into the file hold, one of a read-only descriptor cannot be made
 * writable, one of a writable descriptor can.
 */
#include "workload.h"

#define PAGES 12

int main(int argc, char **argv)
{
	static uint8_t content[PAGES * 4096];
	char before[2][PATH_MAX];
	uint8_t *map, *view, *later, byte;
	int fd, readable;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	readable = MUST(open(wl_path("file"), O_RDONLY));
	wl_fill(content, sizeof(content), 2);
	MUST(write(fd, content, sizeof(content)));
	map = MUST(mmap(NULL, 6 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 * 4096));
	view = MUST(mmap(NULL, sizeof(content), PROT_READ, MAP_SHARED, readable, 0));
	later = MUST(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0));
	MUST(close(fd));
	map[4096] = 'w';
	snprintf(before[0], PATH_MAX, "%s", wl_mapping(map, NULL));
	snprintf(before[1], PATH_MAX, "%s", wl_mapping(view, NULL));

	wl_ready();
	if (wl_lose)
		MUST(mmap(map, 6 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	CHECK(strcmp(before[0], wl_mapping(map, NULL)) == 0, "mapping was '%s', is '%s'", before[0], wl_mapping(map, NULL));
	CHECK(strcmp(before[1], wl_mapping(view, NULL)) == 0, "mapping was '%s', is '%s'", before[1], wl_mapping(view, NULL));
	CHECK(map[4096] == 'w' && map[0] == content[4 * 4096], "the mapping shows something else");
	map[2 * 4096] = 'x';
	CHECK(pread(readable, &byte, 1, 6 * 4096) == 1 && byte == 'x', "a write to the mapping does not reach the file");
	CHECK(view[6 * 4096] == 'x', "two mappings of the file differ");
	CHECK(mprotect(later, 4096, PROT_READ | PROT_WRITE) == 0, "a mapping of a writable descriptor can no longer be made writable");
	later[1] = 'y';
	CHECK(view[1] == 'y', "it is no longer of the file");
	CHECK(mprotect(view, 4096, PROT_READ | PROT_WRITE) < 0 && errno == EACCES, "a mapping of a read-only descriptor can be made writable");
	wl_ok();
}
