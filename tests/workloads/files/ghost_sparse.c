// criu-flags: --ghost-limit 1G
/* A deleted sparse file of 200 MB with three islands of data: the holes stay holes. */
#include "workload.h"

#define SIZE (200l << 20)

static const off_t islands[] = { 4096, 100l << 20, SIZE - 8192 };

int main(int argc, char **argv)
{
	uint8_t page[4096];
	struct stat before, now;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("sparse"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, SIZE));
	for (int i = 0; i < 3; i++) {
		wl_fill(page, sizeof(page), i);
		MUST(pwrite(fd, page, sizeof(page), islands[i]));
	}
	MUST(unlink(wl_path("sparse")));
	MUST(fsync(fd));
	MUST(fstat(fd, &before));

	wl_ready();
	if (wl_lose)
		MUST(posix_fallocate(fd, 0, 10 << 20) ? -1 : 0);
	MUST(fsync(fd));
	MUST(fstat(fd, &now));
	CHECK(now.st_size == SIZE, "its size is %ld", (long)now.st_size);
	for (int i = 0; i < 3; i++) {
		MUST(pread(fd, page, sizeof(page), islands[i]));
		CHECK(wl_differs(page, sizeof(page), i) < 0, "island %d differs", i);
	}
	CHECK(now.st_blocks <= before.st_blocks + 64, "it took %ld blocks, takes %ld: the holes are filled", (long)before.st_blocks, (long)now.st_blocks);
	CHECK(lseek(fd, 8192, SEEK_DATA) == islands[1], "the second data are at %ld", (long)lseek(fd, 8192, SEEK_DATA));
	wl_ok();
}
