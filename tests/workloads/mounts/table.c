// peer: no, it needs to be told the root by --root
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
/* A mount namespace like that of a container, with a root of its own: file systems of the kernel and in memory, binds of
 * directories and files, flags, mounts over mounts, read-only ones. */
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include "mounts.h"

static void set_up(void)
{
	mounted("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mounted("sysfs", "/sys", MS_RDONLY, NULL);
	mounted("tmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, "size=65536k,mode=755");
	mounted("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
	mounted("mqueue", "/dev/mqueue", 0, NULL);
	mounted("tmpfs", "/dev/shm", MS_NOSUID, "size=1m,nr_inodes=100,mode=1777");
	MUST(mknod("/dev/null", S_IFCHR | 0666, makedev(1, 3)));
	MUST(symlink("pts/ptmx", "/dev/ptmx"));
	put("/dev/shm/file", "in memory");
	MUST(link("/dev/shm/file", "/dev/shm/second"));
	MUST(mkfifo("/dev/shm/fifo", 0600));
	MUST(lchown("/dev/shm/second", 1234, 2345));
	/* A masked directory and a masked file of /proc, and a read-only part of it. */
	MUST(mount("tmpfs", "/proc/fs", "tmpfs", MS_RDONLY, "size=0k"));
	MUST(mount("/dev/null", "/proc/version", NULL, MS_BIND, NULL));
	MUST(mount("/proc/sys", "/proc/sys", NULL, MS_BIND, NULL));
	changed("/proc/sys", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID);
	/* A volume that is below the root, once more read-only. */
	directory("/volume");
	put("/volume/file", "of the volume");
	bound("/volume", "/again");
	changed("/again", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOATIME);
	/* A file over a file. */
	put("/hosts", "hidden");
	MUST(mount("/volume/file", "/hosts", NULL, MS_BIND, NULL));
	/* A file system that was filled and is read-only. */
	mounted("tmpfs", "/fixed", 0, NULL);
	put("/fixed/file", "fixed");
	MUST(mount(NULL, "/fixed", NULL, MS_REMOUNT | MS_RDONLY, NULL));
	/* A part of it elsewhere, and one upon another. */
	mounted("tmpfs", "/stack", 0, NULL);
	put("/stack/lower", "lower");
	mounted("tmpfs", "/stack", 0, NULL);
	put("/stack/upper", "upper");
	directory("/stack/part");
	put("/stack/part/file", "in a part");
	bound("/stack/part", "/part");
	MUST(mount(NULL, "/part", NULL, MS_UNBINDABLE, NULL));
}

static void check(int file, int pty)
{
	struct stat one, other;
	int number;

	CHECK(holds("/dev/shm/file", "in memory"), "the file in memory has changed");
	MUST(stat("/dev/shm/file", &one));
	MUST(stat("/dev/shm/second", &other));
	CHECK(one.st_ino == other.st_ino && one.st_nlink == 2, "the names in memory are of two files");
	CHECK(one.st_uid == 1234 && one.st_gid == 2345 && (one.st_mode & 07777) == 0640, "owner or mode have changed");
	MUST(stat("/dev/shm/fifo", &one));
	CHECK(S_ISFIFO(one.st_mode), "the fifo is gone");
	MUST(stat("/dev/null", &one));
	CHECK(S_ISCHR(one.st_mode) && one.st_rdev == makedev(1, 3), "the device node is another");
	MUST(fstat(file, &one));
	CHECK(one.st_ino == other.st_ino && one.st_dev == other.st_dev && reads(file, "in memory"), "the open file is another");
	CHECK(holds("/hosts", "of the volume") && holds("/again/file", "of the volume"), "the volume is not there");
	CHECK(open("/again/new", O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS, "the volume can be written to");
	CHECK(holds("/fixed/file", "fixed"), "the fixed file has changed");
	CHECK(open("/fixed/new", O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS, "the fixed file system is writable");
	CHECK(holds("/stack/upper", "upper") && access("/stack/lower", F_OK) < 0, "the upper of the stack is not on top");
	CHECK(holds("/part/file", "in a part"), "the part is not there");
	put("/part/file", "as well");
	CHECK(holds("/stack/part/file", "as well"), "the part is of another file system");
	CHECK(access("/proc/self/fd", F_OK) == 0 && access("/sys/class", F_OK) == 0, "the kernel's file systems are not there");
	CHECK(access("/proc/fs/ext4", F_OK) < 0, "/proc/fs is not masked");
	CHECK(ioctl(pty, TIOCGPTN, &number) == 0 && number == 0, "the terminal has another number");
	MUST(stat("/dev/pts/0", &one));
	MUST(stat("/dev/console", &other));
	CHECK(one.st_dev == other.st_dev && one.st_ino == other.st_ino && one.st_rdev == other.st_rdev, "the console is another");
	MUST(umount2("/stack", MNT_DETACH));
	CHECK(holds("/stack/lower", "lower"), "what was hidden has changed");
}

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		int file, pty;

		own_root();
		/* Its id is given again, to the console: ids tell no order. */
		mounted("tmpfs", "/early", 0, NULL);
		set_up();
		file = MUST(open("/dev/shm/second", O_RDWR));
		pty = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
		put("/dev/console", "");
		MUST(umount("/early"));
		MUST(mount("/dev/pts/0", "/dev/console", NULL, MS_BIND, NULL));
		MUST(chdir("/stack/part"));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			put("/dev/shm/file", "lost");
		CHECK(holds("file", "in a part"), "the working directory is another");
		check(file, pty);
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
