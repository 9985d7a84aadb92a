/*
 * An anonymous shared segment opened through /proc/self/map_files: held by a descriptor, mapped once more shared and once
 * privately, at offsets. The private mapping keeps its own written pages, and shows the segment's where it has none.
 */
#include "workload.h"

#define PAGES 6

int main(int argc, char **argv)
{
	uint8_t *segment, *shared, *private, byte;
	char path[96];
	int fd;

	wl_init(argc, argv);
	segment = MUST(mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	wl_fill(segment, PAGES * 4096, 4);
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (long)segment, (long)segment + PAGES * 4096);
	fd = MUST(open(path, O_RDWR | O_CLOEXEC));
	shared = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * 4096));
	private = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4096));
	private[4096] ^= 0xff;
	MUST(lseek(fd, 4321, SEEK_SET));

	wl_ready();
	if (wl_lose)
		MUST(mmap(private, 4 * 4096, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	CHECK(wl_differs(segment, PAGES * 4096, 4) < 0, "the segment differs at %zd", wl_differs(segment, PAGES * 4096, 4));
	CHECK(memcmp(shared, segment + 2 * 4096, 4 * 4096) == 0, "the second shared mapping shows something else");
	CHECK((private[4096] ^ segment[2 * 4096]) == 0xff, "the private mapping has lost its own page");
	CHECK(memcmp(private, segment + 4096, 4096) == 0, "the private mapping does not begin with the segment's page");
	CHECK(lseek(fd, 0, SEEK_CUR) == 4321, "the descriptor's position is %ld", (long)lseek(fd, 0, SEEK_CUR));

	segment[3 * 4096] ^= 0xff;
	CHECK(shared[4096] == segment[3 * 4096], "a write to the segment is not seen in its second mapping");
	CHECK(private[2 * 4096] == segment[3 * 4096], "a write to the segment is not seen in an unwritten page of the private mapping");
	segment[2 * 4096] ^= 0x0f;
	CHECK((private[4096] ^ segment[2 * 4096]) != 0xff, "a write to the segment is seen in a page that is private");
	MUST(pread(fd, &byte, 1, 3 * 4096));
	CHECK(byte == segment[3 * 4096], "the descriptor is that of another segment");
	wl_ok();
}
