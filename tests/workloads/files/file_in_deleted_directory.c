/* A deleted file in a deleted directory. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat status;
	char text[8] = "";
	int fd;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("directory"), 0700));
	MUST(mkdir(wl_path("directory/below"), 0700));
	fd = MUST(open(wl_path("directory/below/file"), O_RDWR | O_CREAT, 0600));
	MUST(write(fd, "deep", 4));
	MUST(unlink(wl_path("directory/below/file")));
	MUST(rmdir(wl_path("directory/below")));
	MUST(rmdir(wl_path("directory")));

	wl_ready();
	if (wl_lose)
		MUST(pwrite(fd, "D", 1, 0));
	CHECK(pread(fd, text, 8, 0) == 4 && strcmp(text, "deep") == 0, "contents are '%s'", text);
	MUST(fstat(fd, &status));
	CHECK(status.st_nlink == 0 && access(wl_path("directory"), F_OK) < 0, "the file or its directory has come back");
	wl_ok();
}
