/* Working directories: one of its own per process, found through a relative name. */
#include "workload.h"

int main(int argc, char **argv)
{
	char cwd[PATH_MAX];
	pid_t child;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("one"), 0755));
	MUST(mkdir(wl_path("two"), 0755));
	MUST(chdir(wl_path("one")));
	child = wl_fork();
	if (child == 0) {
		MUST(chdir("../two"));
		wl_child_ready();
		wl_wait();
		MUST(getcwd(cwd, sizeof(cwd)) ? 0 : -1);
		CHECK(strcmp(cwd, wl_path("two")) == 0, "the child is in %s", cwd);
		_exit(0);
	}
	wl_ready();
	if (wl_lose)
		MUST(chdir("/"));
	close(MUST(open("made-here", O_CREAT | O_WRONLY, 0600)));
	CHECK(access(wl_path("one/made-here"), F_OK) == 0, "a relative name leads elsewhere");
	wl_join(child);
	wl_ok();
}
