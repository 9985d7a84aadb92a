// peer: no, it needs to be told the root by --root
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
// differs: mapping device, file systems in memory are made anew
// differs: mapping inode, files in memory are made anew
/* Files and directories that other mounts hide, and mounts of what has been removed. */
#include <sys/mman.h>

#include "mounts.h"

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		struct stat stat;
		char *mapped, link[64];
		ssize_t length;
		int below, deleted, on_top;

		own_root();
		mounted("proc", "/proc", 0, NULL);
		mounted("tmpfs", "/a", 0, NULL);
		directory("/a/b");
		put("/a/file", "below");
		put("/a/b/c", "deep below");
		mounted("tmpfs", "/a/b", 0, NULL);
		put("/a/b/d", "hidden with its mount");
		below = MUST(open("/a/file", O_RDWR));
		mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, below, 0);
		CHECK(mapped != MAP_FAILED, "mmap: %m");
		put("/a/deleted", "deleted and hidden");
		deleted = MUST(open("/a/deleted", O_RDWR));
		MUST(unlink("/a/deleted"));
		MUST(chdir("/a/b"));
		mounted("tmpfs", "/a", 0, NULL);
		put("/a/top", "on top");
		on_top = MUST(open("/a/top", O_RDONLY));
		/* What is mounted is removed. */
		directory("/r");
		directory("/gone");
		bound("/gone", "/r");
		MUST(rmdir("/gone"));
		put("/f", "");
		put("/gone-file", "");
		MUST(mount("/gone-file", "/f", NULL, MS_BIND, NULL));
		MUST(unlink("/gone-file"));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			memcpy(mapped, "lost", 4);
		CHECK(reads(below, "below") && memcmp(mapped, "below", 5) == 0, "the hidden file has changed");
		MUST(pwrite(below, "BELOW", 5, 0));
		CHECK(memcmp(mapped, "BELOW", 5) == 0, "the hidden file and its mapping are no more the same");
		CHECK(reads(deleted, "deleted and hidden"), "the deleted file has changed");
		CHECK(reads(on_top, "on top"), "the file on top has changed");
		CHECK(holds("d", "hidden with its mount"), "the hidden working directory is another");
		length = readlink("/proc/self/cwd", link, sizeof(link));
		CHECK(length == 4 && memcmp(link, "/a/b", 4) == 0, "the working directory has another path");
		MUST(lstat("/r", &stat));
		CHECK(S_ISDIR(stat.st_mode) && access("/gone", F_OK) < 0, "what was removed is there again");
		CHECK(open("/r/new", O_CREAT | O_WRONLY, 0600) < 0 && errno == ENOENT, "the removed directory takes files");
		MUST(lstat("/f", &stat));
		CHECK(S_ISREG(stat.st_mode) && stat.st_nlink == 0, "the removed file has a name again");
		MUST(umount2("/a", MNT_DETACH));
		CHECK(holds("/a/file", "BELOW") && holds("/a/b/d", "hidden with its mount"), "what was hidden has changed");
		MUST(chdir("/"));
		MUST(umount2("/a/b", MNT_DETACH));
		CHECK(holds("/a/b/c", "deep below"), "what was hidden deepest has changed");
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
