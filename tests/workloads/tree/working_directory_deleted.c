// peer: no, CRIU 4.2 leaves the outer directory behind
/* A working directory that has been deleted, in two processes; and a deleted one inside a deleted one. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat before, now;
	char link[PATH_MAX];
	ssize_t length;
	pid_t child;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("outer"), 0755));
	MUST(mkdir(wl_path("outer/inner"), 0711));
	MUST(chdir(wl_path("outer/inner")));
	child = wl_fork_waiting();
	if (child == 0) {
		CHECK(stat(".", &now) == 0 && now.st_nlink == 0, "the child's directory is another");
		CHECK(open("x", O_CREAT | O_WRONLY, 0600) < 0 && errno == ENOENT, "a file can be made in a deleted directory");
		_exit(0);
	}
	MUST(rmdir(wl_path("outer/inner")));
	MUST(rmdir(wl_path("outer")));
	MUST(stat(".", &before));

	wl_ready();
	if (wl_lose)
		MUST(chdir("/"));
	length = MUST(readlink("/proc/self/cwd", link, sizeof(link) - 1));
	link[length] = 0;
	CHECK(strstr(link, "outer/inner (deleted)"), "the working directory is %s", link);
	MUST(stat(".", &now));
	CHECK(now.st_mode == before.st_mode && now.st_nlink == 0, "its mode was %o, is %o, with %lu links", before.st_mode, now.st_mode, now.st_nlink);
	CHECK(access(wl_path("outer"), F_OK) < 0, "the deleted directory has come back");
	wl_join(child);
	wl_ok();
}
