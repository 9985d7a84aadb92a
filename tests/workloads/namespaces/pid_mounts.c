// peer: no, CRIU 4.2 carries no pid namespace within that of the tree
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files of proc are made anew
// differs: descriptor file.modified, a file of proc is as old as its name in the cache
// differs: descriptor file.modified_ns, a file of proc is as old as its name in the cache
// differs: descriptor file.device, file systems of the kernel are made anew
/*
 * File systems of proc, of pid namespaces within the tree: one that is mounted where the outside sees it as well, as
 * unshare(1) does it, with a part of it bound elsewhere, and one in a mount namespace of its own.
 */
#include "mounts/mounts.h"

static void check_self(const char *proc, pid_t number)
{
	char path[64], link[32] = "", wanted[32];

	snprintf(path, sizeof(path), "%s/self", proc);
	snprintf(wanted, sizeof(wanted), "%d", number);
	if (number == 0) {
		CHECK(readlink(path, link, sizeof(link) - 1) < 0, "%s leads to %s", path, link);
		return;
	}
	MUST(readlink(path, link, sizeof(link) - 1));
	CHECK(strcmp(link, wanted) == 0, "%s leads to %s instead of %s", path, link, wanted);
}

/* The child of the init, with mounts of its own. */
static void be_grandchild(pid_t outside)
{
	MUST(unshare(CLONE_NEWNS));
	mounted("proc", "/own", MS_NOSUID, NULL);
	wl_child_ready();
	wl_wait();
	check_self("/own", 2);
	check_self("/inner", 2);
	check_self("/proc", outside);
	_exit(0);
}

static pid_t outside_number(void)
{
	char link[32] = "";

	MUST(readlink("/proc/self", link, sizeof(link) - 1));
	return atoi(link);
}

static void be_init(void)
{
	pid_t outside = outside_number(), child;
	int file;

	mounted("proc", "/inner", MS_NOSUID | MS_NODEV, NULL);
	bound("/inner/sys", "/part");
	changed("/part", MS_REMOUNT | MS_BIND | MS_RDONLY);
	child = wl_fork();
	if (child == 0)
		be_grandchild(outside_number());
	file = MUST(open("/inner/1/comm", O_RDONLY));
	wl_child_ready();
	wl_wait();
	if (wl_lose)
		MUST(umount2("/inner", MNT_DETACH));
	check_self("/inner", 1);
	check_self("/proc", outside);
	CHECK(access("/part/kernel", F_OK) == 0, "the part of proc is not there");
	CHECK(reads(file, "pid_mounts\n"), "the open file is another");
	wl_join(child);
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t child, init;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		own_root();
		mounted("proc", "/proc", 0, NULL);
		MUST(unshare(CLONE_NEWPID));
		init = wl_fork();
		if (init == 0)
			be_init();
		wl_child_ready();
		wl_wait();
		check_self("/inner", 0);
		check_self("/proc", getpid());
		wl_join(init);
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
