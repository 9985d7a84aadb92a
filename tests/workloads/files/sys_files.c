/* Open files of /sys. */
#include "workload.h"

int main(int argc, char **argv)
{
	char before[256], now[256];
	int fd, place;
	ssize_t length;

	wl_init(argc, argv);
	fd = MUST(open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY));
	place = MUST(open("/sys/kernel/mm", O_RDONLY | O_DIRECTORY));
	length = MUST(pread(fd, before, sizeof(before), 0));
	MUST(lseek(fd, 3, SEEK_SET));

	wl_ready();
	if (wl_lose)
		MUST(lseek(fd, 0, SEEK_SET));
	CHECK(pread(fd, now, sizeof(now), 0) == length && memcmp(now, before, length) == 0, "it says something else");
	CHECK(lseek(fd, 0, SEEK_CUR) == 3, "the position is %ld", (long)lseek(fd, 0, SEEK_CUR));
	CHECK(faccessat(place, "hugepages", F_OK, 0) == 0, "the directory is another");
	wl_ok();
}
