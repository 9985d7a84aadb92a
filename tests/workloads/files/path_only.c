/* O_PATH: of a file, a directory, a symbolic link itself; still usable as a place, not for reading. */
#include "workload.h"

int main(int argc, char **argv)
{
	char text[64] = "", link[64];
	int file, directory, symbolic, usable;
	struct stat status;

	wl_init(argc, argv);
	close(MUST(open(wl_path("file"), O_CREAT | O_WRONLY, 0600)));
	MUST(mkdir(wl_path("directory"), 0700));
	MUST(symlink("nowhere", wl_path("link")));
	file = MUST(open(wl_path("file"), O_PATH));
	directory = MUST(open(wl_path("directory"), O_PATH | O_DIRECTORY | O_CLOEXEC));
	symbolic = MUST(open(wl_path("link"), O_PATH | O_NOFOLLOW));

	wl_ready();
	if (wl_lose)
		MUST(dup2(file, symbolic));
	CHECK(read(file, text, 1) < 0 && errno == EBADF, "the file can be read");
	CHECK((fcntl(file, F_GETFL) & O_PATH) && (fcntl(directory, F_GETFL) & O_PATH), "flags are %#o and %#o",
	      fcntl(file, F_GETFL), fcntl(directory, F_GETFL));
	MUST(fstat(symbolic, &status));
	CHECK(S_ISLNK(status.st_mode), "the link has become something else: %o", status.st_mode);
	CHECK(readlinkat(symbolic, "", text, sizeof(text)) == 7 && strcmp(text, "nowhere") == 0, "the link leads to '%s'", text);
	CHECK(mkdirat(directory, "inside", 0700) == 0 && access(wl_path("directory/inside"), F_OK) == 0, "the directory is another");
	snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
	usable = open(link, O_RDWR);
	CHECK(usable >= 0, "the file cannot be reopened: %s", strerror(errno));
	wl_ok();
}
