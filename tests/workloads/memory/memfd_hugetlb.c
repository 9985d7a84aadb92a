/* A memfd of huge pages, mapped twice. */
#include "workload.h"

#define HUGE (2ul << 20)

int main(int argc, char **argv)
{
	uint8_t *map, *other;
	struct stat status;
	int fd, pages;

	wl_init(argc, argv);
	pages = MUST(open("/proc/sys/vm/nr_hugepages", O_RDWR | O_CLOEXEC));
	{
		char number[32] = "";

		MUST(read(pages, number, sizeof(number) - 1));
		if (atol(number) < 16)
			MUST(pwrite(pages, "20", 2, 0));
		close(pages);
	}
	fd = MUST(memfd_create("huge", MFD_HUGETLB));
	MUST(ftruncate(fd, 3 * HUGE));
	map = MUST(mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	other = MUST(mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, HUGE));
	wl_fill(map, HUGE + 5000, 8);

	wl_ready();
	if (wl_lose)
		MUST(ftruncate(fd, 2 * HUGE));
	MUST(fstat(fd, &status));
	CHECK(status.st_size == 3 * HUGE && status.st_blksize == HUGE, "size %ld, block size %ld", (long)status.st_size, (long)status.st_blksize);
	CHECK(wl_differs(map, HUGE + 5000, 8) < 0, "contents differ at %zd", wl_differs(map, HUGE + 5000, 8));
	other[4999] ^= 1;
	CHECK(map[HUGE + 4999] == other[4999], "two mappings are no longer of one memfd");
	wl_ok();
}
