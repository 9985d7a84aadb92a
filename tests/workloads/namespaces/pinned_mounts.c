// peer: no, CRIU 4.2 carries no mount namespace without processes
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, namespaces and file systems are made anew
// differs: descriptor link, it tells the number of a namespace
// differs: descriptor file.modified, files of namespaces are as old as these
// differs: descriptor file.modified_ns, files of namespaces are as old as these
// differs: descriptor file.device, file systems in memory are made anew
/* Mount namespaces in which nobody is any more: two are open, of which one was copied from the other, and a file that they
 * alone show. */
#include "../mounts/mounts.h"

static void check(int left, int home, const char *text, bool has_more)
{
	MUST(setns(left, CLONE_NEWNS));
	CHECK(holds("/own/file", text), "the file in memory does not say %s", text);
	CHECK(holds("/all/file", "of all"), "the common file system is another");
	CHECK(has_more ? holds("/more/file", "more") : access("/more/file", F_OK) < 0, "what was mounted later is another");
	MUST(setns(home, CLONE_NEWNS));
	CHECK(access("/own/file", F_OK) < 0 && access("/more/file", F_OK) < 0, "mounts of one are in another");
	CHECK(holds("/all/file", "of all"), "the common file system is gone");
}

static void child(void)
{
	int home, first, second, file;
	struct stat one, other;

	own_root();
	mounted("proc", "/proc", 0, NULL);
	mounted("tmpfs", "/all", 0, NULL);
	put("/all/file", "of all");
	directory("/own");
	directory("/more");
	home = MUST(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC));
	MUST(unshare(CLONE_NEWNS));
	mounted("tmpfs", "/own", 0, NULL);
	put("/own/file", "held open");
	file = MUST(open("/own/file", O_RDWR | O_CLOEXEC));
	first = MUST(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC));
	MUST(unshare(CLONE_NEWNS));
	mounted("tmpfs", "/more", 0, NULL);
	put("/more/file", "more");
	second = MUST(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC));
	MUST(setns(home, CLONE_NEWNS));
	wl_child_ready();
	wl_wait();
	if (wl_lose)
		MUST(pwrite(file, "lost", 4, 0));
	MUST(fstat(home, &one));
	MUST(stat("/proc/self/ns/mnt", &other));
	CHECK(one.st_ino == other.st_ino, "what is open is not the own namespace");
	check(first, home, "held open", false);
	check(second, home, "held open", true);
	CHECK(reads(file, "held open"), "the open file is another");
	MUST(pwrite(file, "HELD OPEN", 9, 0));
	check(first, home, "HELD OPEN", false);
	check(second, home, "HELD OPEN", true);
	_exit(0);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	leave_to(child);
}
