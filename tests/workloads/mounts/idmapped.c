// peer: no, it does not carry the maps of mounts
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
/* A mount that shows other owners than its file system has. */
#include <linux/mount.h>

#include "mounts.h"

static void write_to(pid_t pid, const char *file, const char *text)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	fd = MUST(open(path, O_WRONLY));
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

/* A user namespace with maps. */
static int user_namespace(void)
{
	char path[64];
	pid_t child = wl_fork();
	int fd;

	if (child == 0) {
		MUST(unshare(CLONE_NEWUSER));
		wl_child_ready();
		pause();
	}
	write_to(child, "uid_map", "1000 5000 10\n2000 7000 1\n");
	write_to(child, "gid_map", "1000 6000 10\n");
	snprintf(path, sizeof(path), "/proc/%d/ns/user", child);
	fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, NULL, 0));
	return fd;
}

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP };
		struct stat stat;
		int tree, file;

		own_root();
		mounted("proc", "/proc", 0, NULL);
		mounted("tmpfs", "/m", 0, NULL);
		put("/m/file", "mapped");
		MUST(chown("/m/file", 1003, 1004));
		put("/m/other", "too");
		MUST(chown("/m/other", 2000, 1000));
		directory("/mapped");
		attr.userns_fd = user_namespace();
		tree = MUST(syscall(SYS_open_tree, AT_FDCWD, "/m", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
		MUST(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)));
		MUST(syscall(SYS_move_mount, tree, "", AT_FDCWD, "/mapped", MOVE_MOUNT_F_EMPTY_PATH));
		close(tree);
		close(attr.userns_fd);
		file = MUST(open("/mapped/file", O_RDONLY));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(umount2("/mapped", MNT_DETACH));
		MUST(lstat("/mapped/file", &stat));
		CHECK(stat.st_uid == 5003 && stat.st_gid == 6004, "the file is shown as that of %u:%u", stat.st_uid, stat.st_gid);
		MUST(lstat("/mapped/other", &stat));
		CHECK(stat.st_uid == 7000 && stat.st_gid == 6000, "the other is shown as that of %u:%u", stat.st_uid, stat.st_gid);
		MUST(lstat("/m/file", &stat));
		CHECK(stat.st_uid == 1003 && stat.st_gid == 1004, "the file is that of %u:%u", stat.st_uid, stat.st_gid);
		MUST(fstat(file, &stat));
		CHECK(stat.st_uid == 5003 && reads(file, "mapped"), "the open file is another");
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
