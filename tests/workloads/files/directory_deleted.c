/* Open directories that have been deleted: one alone, one within the other, one by O_PATH. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat before[3], now;
	int fds[3];
	char link[64], path[PATH_MAX];
	ssize_t length;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("alone"), 0751));
	MUST(mkdir(wl_path("outer"), 0700));
	MUST(mkdir(wl_path("outer/inner"), 01777));
	fds[0] = MUST(open(wl_path("alone"), O_RDONLY | O_DIRECTORY));
	fds[1] = MUST(open(wl_path("outer/inner"), O_RDONLY));
	fds[2] = MUST(open(wl_path("outer"), O_PATH));
	MUST(rmdir(wl_path("outer/inner")));
	MUST(rmdir(wl_path("outer")));
	MUST(rmdir(wl_path("alone")));
	for (int i = 0; i < 3; i++)
		MUST(fstat(fds[i], &before[i]));

	wl_ready();
	if (wl_lose)
		MUST(dup2(MUST(open(wl_dir, O_RDONLY)), fds[1]));
	for (int i = 0; i < 3; i++) {
		MUST(fstat(fds[i], &now));
		CHECK(S_ISDIR(now.st_mode) && now.st_mode == before[i].st_mode && now.st_nlink == 0, "directory %d: mode was %o, is %o with %lu links", i,
		      before[i].st_mode, now.st_mode, now.st_nlink);
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fds[i]);
		length = MUST(readlink(link, path, sizeof(path) - 1));
		path[length] = 0;
		CHECK(strstr(path, " (deleted)"), "directory %d is %s", i, path);
		CHECK(openat(fds[i], "new", O_CREAT | O_WRONLY, 0600) < 0 && errno == ENOENT, "directory %d can be written to", i);
	}
	CHECK(access(wl_path("alone"), F_OK) < 0 && access(wl_path("outer"), F_OK) < 0, "deleted directories have come back");
	wl_ok();
}
