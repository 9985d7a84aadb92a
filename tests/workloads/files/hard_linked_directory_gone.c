// checkpoint-flags: --link-remap
// differs: descriptor file.links, --link-remap gives the file another name
/* A file deleted under the name that it was opened by, together with the directories, while another name for it remains. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat open_one, named;
	int fd, second;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("gone"), 0700));
	MUST(mkdir(wl_path("gone/deep"), 0700));
	fd = MUST(open(wl_path("gone/deep/first-name"), O_RDWR | O_CREAT, 0600));
	MUST(write(fd, "linked", 6));
	MUST(mkdir(wl_path("directory"), 0700));
	MUST(link(wl_path("gone/deep/first-name"), wl_path("directory/second-name")));
	second = MUST(open(wl_path("gone/deep/first-name"), O_RDONLY));
	MUST(unlink(wl_path("gone/deep/first-name")));
	MUST(rmdir(wl_path("gone/deep")));
	MUST(rmdir(wl_path("gone")));

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
	CHECK(access(wl_path("gone"), F_OK) < 0, "the deleted name has come back");
	wl_ok();
}
