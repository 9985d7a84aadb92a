/* A memfd: name, size, position, contents, status flags; mapped shared, mapped private, and held by two descriptors. */
#include "workload.h"

#define SIZE (10 * 4096 + 123)

int main(int argc, char **argv)
{
	static uint8_t content[SIZE];
	uint8_t *shared, *private;
	char link[64], target[256];
	struct stat status;
	int fd, again;
	ssize_t got;

	wl_init(argc, argv);
	fd = MUST(memfd_create("under test", 0));
	wl_fill(content, SIZE, 5);
	MUST(write(fd, content, SIZE));
	MUST(lseek(fd, 777, SEEK_SET));
	MUST(fchmod(fd, 0640));
	again = MUST(dup(fd));
	shared = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	private = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	private[4096] ^= 0x55;

	wl_ready();
	if (wl_lose)
		MUST(ftruncate(fd, 4096 * 2));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	got = MUST(readlink(link, target, sizeof(target) - 1));
	target[got] = 0;
	CHECK(strcmp(target, "/memfd:under test (deleted)") == 0, "it is called '%s'", target);
	MUST(fstat(fd, &status));
	CHECK(status.st_size == SIZE, "its size is %ld", (long)status.st_size);
	CHECK((status.st_mode & 07777) == 0640, "its mode is %o", status.st_mode);
	CHECK(lseek(again, 0, SEEK_CUR) == 777, "position of the duplicate: %ld", (long)lseek(again, 0, SEEK_CUR));
	CHECK(pread(fd, content, SIZE, 0) == SIZE && wl_differs(content, SIZE, 5) < 0, "contents differ");
	CHECK(wl_differs(shared, SIZE, 5) < 0, "the shared mapping differs at %zd", wl_differs(shared, SIZE, 5));
	private[4096] ^= 0x55;
	CHECK(wl_differs(private, SIZE, 5) < 0, "the private mapping differs at %zd", wl_differs(private, SIZE, 5));
	shared[5] ^= 0xff;
	MUST(pread(again, content, 8, 0));
	CHECK(content[5] == shared[5], "the descriptor and the mapping are different files");
	wl_ok();
}
