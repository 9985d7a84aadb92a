/* Shared mappings of a file open for writing that are read-only for now: they can be made writable, also of a memfd. */
#include "workload.h"

#define SIZE (4 * 4096)

static void write_through(uint8_t *map, int fd, const char *what)
{
	uint8_t byte;

	CHECK(mprotect(map, SIZE, PROT_READ | PROT_WRITE) == 0, "%s cannot be made writable: %m", what);
	map[4096] = 'x';
	CHECK(pread(fd, &byte, 1, 4096) == 1 && byte == 'x', "a write to %s does not reach the file", what);
	map[4096] = 'a';
}

int main(int argc, char **argv)
{
	uint8_t *born, *made, *memory;
	int writable, memfd, readable;

	wl_init(argc, argv);
	writable = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	readable = MUST(open(wl_path("file"), O_RDONLY));
	memfd = MUST(memfd_create("readonly", 0));
	MUST(ftruncate(writable, SIZE));
	MUST(ftruncate(memfd, SIZE));
	born = MUST(mmap(NULL, SIZE, PROT_READ, MAP_SHARED, writable, 0));
	made = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0));
	MUST(mprotect(made, SIZE, PROT_READ));
	memory = MUST(mmap(NULL, SIZE, PROT_READ, MAP_SHARED, memfd, 0));
	MUST(close(writable));

	wl_ready();
	if (wl_lose)
		MUST(mmap(made, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, readable, 0));
	write_through(born, readable, "a mapping that was read-only from the start");
	write_through(made, readable, "a mapping that was made read-only");
	write_through(memory, memfd, "a mapping of a memfd");
	wl_ok();
}
