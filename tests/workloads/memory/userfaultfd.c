// refused: userfaultfd
/* A program that handles its own page faults. Nobody can carry that: it must be refused by name, and go on. */
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	uint8_t *map;
	int fd;

	wl_init(argc, argv);
	fd = MUST(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
	MUST(ioctl(fd, UFFDIO_API, &api));
	map = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	range.range.start = (unsigned long)map;
	range.range.len = 4 * 4096;
	MUST(ioctl(fd, UFFDIO_REGISTER, &range));

	wl_ready();
	if (wl_lose)
		MUST(ioctl(fd, UFFDIO_UNREGISTER, &range.range));
	CHECK(wl_has_vmflag(map, "um"), "the range is no longer registered");
	wl_ok();
}
