// refused: --link-remap
/* A deleted file that has another name, when nobody has allowed a temporary name for it: refused, and not changed. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat status;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("first-name"), O_RDWR | O_CREAT, 0600));
	MUST(link(wl_path("first-name"), wl_path("second-name")));
	MUST(unlink(wl_path("first-name")));

	wl_ready();
	if (wl_lose)
		MUST(link(wl_path("second-name"), wl_path("third-name")));
	MUST(fstat(fd, &status));
	CHECK(status.st_nlink == 1, "it has %lu names now", status.st_nlink);
	wl_ok();
}
