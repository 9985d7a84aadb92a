/* A child in a root directory of its own. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat root, outside, own;
	pid_t child;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("jail"), 0755));
	MUST(mkdir(wl_path("jail/below"), 0755));
	MUST(stat(wl_path("jail"), &own));
	child = wl_fork();
	if (child == 0) {
		int inside;

		MUST(chroot(wl_path("jail")));
		MUST(chdir("/below"));
		wl_child_ready();
		/* Outside files cannot be polled for from here: ours is made in the jail. */
		strcpy(wl_dir, "/");
		wl_wait();
		if (wl_lose)
			MUST(chroot("/below"));
		MUST(stat("/", &root));
		CHECK(root.st_ino == own.st_ino, "the root directory is another");
		MUST(stat("/..", &root));
		CHECK(root.st_ino == own.st_ino, "the jail can be left");
		inside = open("relative", O_CREAT | O_WRONLY, 0600);
		CHECK(inside >= 0 && access("/below/relative", F_OK) == 0, "the working directory is another");
		_exit(0);
	}

	wl_ready();
	MUST(stat("/", &root));
	MUST(stat("/..", &outside));
	CHECK(root.st_ino != own.st_ino && root.st_ino == outside.st_ino, "the root process is in the jail");
	close(MUST(creat(wl_path("jail/go"), 0600)));
	wl_join(child);
	wl_ok();
}
