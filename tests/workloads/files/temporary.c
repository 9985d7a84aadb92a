// peer: no, CRIU 4.2 restores it as one that can get no name
/* A file that never had a name (O_TMPFILE), and that can still be given one. */
#include "workload.h"

int main(int argc, char **argv)
{
	char link[64], text[16] = "";
	struct stat status;
	int fd, unlinkable;

	wl_init(argc, argv);
	fd = MUST(open(wl_dir, O_TMPFILE | O_RDWR, 0640));
	MUST(write(fd, "nameless", 8));
	unlinkable = MUST(open(wl_dir, O_TMPFILE | O_EXCL | O_WRONLY, 0600));
	MUST(write(unlinkable, "other", 5));

	wl_ready();
	if (wl_lose)
		MUST(ftruncate(fd, 4));
	MUST(fstat(fd, &status));
	CHECK(status.st_nlink == 0 && status.st_size == 8 && (status.st_mode & 0777) == 0640, "%lu links, %ld bytes, mode %o", status.st_nlink,
	      (long)status.st_size, status.st_mode);
	CHECK(pread(fd, text, 8, 0) == 8 && strcmp(text, "nameless") == 0, "contents are '%s'", text);
	CHECK(lseek(unlinkable, 0, SEEK_CUR) == 5, "the position of the other is %ld", (long)lseek(unlinkable, 0, SEEK_CUR));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	CHECK(linkat(AT_FDCWD, link, AT_FDCWD, wl_path("named"), AT_SYMLINK_FOLLOW) == 0, "it cannot be given a name: %s", strerror(errno));
	wl_ok();
}
