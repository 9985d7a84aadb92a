// checkpoint-flags: --link-remap
// differs: descriptor file.links, --link-remap gives the file another name
/* A file deleted under the name that it was opened by, while another name for it remains: it is that file, not a copy. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat open_one, named;
	int fd, second;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("first-name"), O_RDWR | O_CREAT, 0600));
	MUST(write(fd, "linked", 6));
	MUST(mkdir(wl_path("directory"), 0700));
	MUST(link(wl_path("first-name"), wl_path("directory/second-name")));
	second = MUST(open(wl_path("first-name"), O_RDONLY));
	MUST(unlink(wl_path("first-name")));

	wl_ready();
	if (wl_lose)
		MUST(rename(wl_path("directory/second-name"), wl_path("directory/third-name"))),
			close(MUST(creat(wl_path("directory/second-name"), 0600)));
	MUST(fstat(fd, &open_one));
	MUST(stat(wl_path("directory/second-name"), &named));
	CHECK(open_one.st_ino == named.st_ino && open_one.st_dev == named.st_dev, "the open file is no longer the one that the other name has");
	/* Where the workload goes on beside its image, the image's own temporary name stays. */
	CHECK(open_one.st_nlink <= 2, "it has %lu links", open_one.st_nlink);
	CHECK(lseek(fd, 0, SEEK_CUR) == 6 && lseek(second, 0, SEEK_CUR) == 0, "positions are lost");
	CHECK(access(wl_path("first-name"), F_OK) < 0, "the deleted name has come back");
	wl_ok();
}
