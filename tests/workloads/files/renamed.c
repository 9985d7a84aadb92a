/* A file and a directory that were renamed after they were opened. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat before, now;
	int fd, directory;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("old"), 0700));
	directory = MUST(open(wl_path("old"), O_RDONLY | O_DIRECTORY));
	fd = MUST(openat(directory, "file", O_RDWR | O_CREAT, 0600));
	MUST(write(fd, "abc", 3));
	MUST(rename(wl_path("old"), wl_path("new")));
	MUST(rename(wl_path("new/file"), wl_path("new/name\nwith a line break")));
	/* Somebody else takes the old name. */
	MUST(mkdir(wl_path("old"), 0700));
	MUST(fstat(fd, &before));

	wl_ready();
	if (wl_lose)
		MUST(dup2(MUST(open(wl_path("old"), O_RDONLY)), directory));
	MUST(fstat(fd, &now));
	CHECK(now.st_ino == before.st_ino && lseek(fd, 0, SEEK_CUR) == 3, "the file is another");
	CHECK(faccessat(directory, "name\nwith a line break", F_OK, 0) == 0, "the directory is another");
	wl_ok();
}
