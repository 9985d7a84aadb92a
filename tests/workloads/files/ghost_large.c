// criu-flags: --ghost-limit 1G
/* A deleted file of 24 MB, larger than what others accept by default. */
#include "workload.h"

#define SIZE (24 << 20)

int main(int argc, char **argv)
{
	uint8_t *content;
	int fd;

	wl_init(argc, argv);
	content = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(content, SIZE, 3);
	fd = MUST(open(wl_path("large"), O_RDWR | O_CREAT, 0600));
	for (ssize_t done = 0; done < SIZE;)
		done += MUST(write(fd, content + done, SIZE - done));
	MUST(unlink(wl_path("large")));
	MUST(madvise(content, SIZE, MADV_DONTNEED));

	wl_ready();
	if (wl_lose)
		MUST(pwrite(fd, "", 1, 20 << 20));
	CHECK(lseek(fd, 0, SEEK_CUR) == SIZE, "the position is %ld", (long)lseek(fd, 0, SEEK_CUR));
	for (ssize_t done = 0; done < SIZE;) {
		ssize_t got = MUST(pread(fd, content + done, SIZE - done, done));

		CHECK(got > 0, "it ends at %zd", done);
		done += got;
	}
	CHECK(wl_differs(content, SIZE, 3) < 0, "contents differ at %zd", wl_differs(content, SIZE, 3));
	wl_ok();
}
