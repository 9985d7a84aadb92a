// peer: no, it needs to be told the root by --root
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
// differs: process ns.user, the number of a namespace, of which the kernel gives each another
/* File systems in memory that others hide, in a mount namespace that belongs to a user namespace of the tree. */
#include "mounts.h"

static void write_file(const char *name, const char *text)
{
	int fd = MUST(open(name, O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		MUST(unshare(CLONE_NEWUSER));
		write_file("/proc/self/setgroups", "deny");
		write_file("/proc/self/uid_map", "0 0 1");
		write_file("/proc/self/gid_map", "0 0 1");
		own_root();
		mounted("tmpfs", "/a", 0, NULL);
		directory("/a/b");
		put("/a/file", "below");
		mounted("tmpfs", "/a/b", 0, NULL);
		put("/a/b/c", "deep below");
		mounted("tmpfs", "/a", 0, NULL);
		put("/a/top", "on top");
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			put("/a/top", "lost");
		CHECK(holds("/a/top", "on top"), "the file on top has changed");
		MUST(umount2("/a", 0));
		CHECK(holds("/a/file", "below") && holds("/a/b/c", "deep below"), "what was hidden has changed");
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
