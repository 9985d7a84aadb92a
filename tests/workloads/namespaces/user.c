// flags: --file-locks
// differs: descriptor file.owner, an inode without a name that was made before belongs to the root of the namespace afterwards
// peer: no, CRIU 4.2 wants a user namespace with all others
// differs: process ns.user, the number of a namespace, of which the kernel gives each another
/*
 * A user namespace with other maps than the identity: credentials, owners of a deleted file and of a memfd, and who gets a
 * file's signals are as the process sees them; it has a lease on a file of one of its users.
 */
#include <sched.h>
#include <sys/fsuid.h>

#include "workload.h"

static void write_file(const char *name, const char *text)
{
	int fd = MUST(open(name, O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static void owned(const char *what, int fd, uid_t uid, gid_t gid)
{
	struct stat st;

	MUST(fstat(fd, &st));
	CHECK(st.st_uid == uid && st.st_gid == gid, "%s belongs to %u:%u", what, st.st_uid, st.st_gid);
}

int main(int argc, char **argv)
{
	int kept, gone, memory, ends[2];
	char name[64], byte;
	pid_t helper;

	wl_init(argc, argv);
	MUST(pipe2(ends, O_CLOEXEC));
	helper = MUST(fork());
	if (helper == 0) {
		/* Only from outside may a map have more than one's own id. */
		MUST(read(ends[0], &byte, 1));
		snprintf(name, sizeof(name), "/proc/%d/uid_map", getppid());
		write_file(name, "0 200000 1000\n5000 300000 10\n");
		snprintf(name, sizeof(name), "/proc/%d/gid_map", getppid());
		write_file(name, "0 400000 1000\n");
		_exit(0);
	}
	/* The protocol's files. */
	MUST(chmod(wl_dir, 0777));
	MUST(chmod(wl_path("result"), 0666));
	MUST(unshare(CLONE_NEWUSER));
	MUST(write(ends[1], "x", 1));
	wl_join(helper);
	close(ends[0]);
	close(ends[1]);
	MUST(setresgid(0, 0, 0));
	MUST(setresuid(0, 0, 0));
	kept = MUST(open(wl_path("kept"), O_CREAT | O_RDONLY | O_CLOEXEC, 0644));
	MUST(fchown(kept, 5001, 7));
	MUST(setfsuid(5001));
	MUST(fcntl(kept, F_SETLEASE, F_RDLCK));
	setfsuid(0);
	gone = MUST(open(wl_path("gone"), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
	MUST(fchown(gone, 8, 9));
	MUST(unlink(wl_path("gone")));
	memory = MUST(memfd_create("m", MFD_CLOEXEC));
	MUST(fchown(memory, 10, 11));

	wl_ready();
	if (wl_lose)
		MUST(fchown(gone, 1, 1));
	CHECK(getuid() == 0 && getgid() == 0, "it is %u:%u", getuid(), getgid());
	owned("the kept file", kept, 5001, 7);
	CHECK(fcntl(kept, F_GETLEASE) == F_RDLCK, "its lease is %d", fcntl(kept, F_GETLEASE));
	owned("the deleted file", gone, 8, 9);
	owned("the memfd", memory, 10, 11);
	wl_ok();
}
