// peer: no, CRIU 4.2 carries no mounts of namespaces
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, namespaces are made anew
// differs: descriptor file.modified, files of namespaces are as old as these
// differs: descriptor file.modified_ns, files of namespaces are as old as these
/* Namespaces with names: their files are mounted, as `ip netns add` does. Of some there are processes, one is the host's,
 * and one is there for its mounts alone. */
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>

#include "../mounts/mounts.h"

#define TTL "/proc/sys/net/ipv4/ip_default_ttl"

/* Whose writing end the children do not have: they stay until the checks are over. */
static int stay[2];

static void stay_until_told(void)
{
	char none;

	CHECK(read(stay[0], &none, 1) == 0, "the pipe has something in it");
}

static ino_t inode(const char *path)
{
	struct stat stat;

	if (lstat(path, &stat) < 0)
		wl_fail("stat %s: %m", path);
	return stat.st_ino;
}

static ino_t inode_of(pid_t pid, const char *kind)
{
	char path[64];
	struct stat found;

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, kind);
	MUST(stat(path, &found));
	return found.st_ino;
}

static void named(const char *from, const char *path)
{
	put(path, "");
	if (mount(from, path, NULL, MS_BIND, NULL) < 0)
		wl_fail("mount %s at %s: %m", from, path);
}

static void bring_loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int socket_fd = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	MUST(ioctl(socket_fd, SIOCSIFFLAGS, &request));
	close(socket_fd);
}

static bool loopback_is_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int socket_fd = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	MUST(ioctl(socket_fd, SIOCGIFFLAGS, &request));
	close(socket_fd);
	return request.ifr_flags & IFF_UP;
}

/* Makes a network namespace with a name and a setting of its own, and stays where it is. */
static void added(const char *path, const char *ttl)
{
	int home = MUST(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));

	MUST(unshare(CLONE_NEWNET));
	bring_loopback_up();
	put(TTL, ttl);
	named("/proc/self/ns/net", path);
	MUST(setns(home, CLONE_NEWNET));
	close(home);
}

/* As `ip netns exec` runs a program: among the mounts is a sysfs of that network. */
static pid_t runs_in(const char *path)
{
	pid_t child = wl_fork();

	if (child == 0) {
		int there = MUST(open(path, O_RDONLY | O_CLOEXEC));

		close(stay[1]);
		MUST(setns(there, CLONE_NEWNET));
		close(there);
		MUST(unshare(CLONE_NEWNS));
		changed("/", MS_SLAVE | MS_REC);
		mounted("sysfs", "/sys", 0, NULL);
		wl_child_ready();
		wl_wait();
		CHECK(inode(path) == inode_of(getpid(), "net"), "the name of the network is another's");
		CHECK(holds(TTL, "78\n") && loopback_is_up(), "the network is another");
		stay_until_told();
		_exit(0);
	}
	return child;
}

static pid_t makes_its_own(const char *path)
{
	pid_t child = wl_fork();

	if (child == 0) {
		close(stay[1]);
		MUST(unshare(CLONE_NEWNET));
		named("/proc/self/ns/net", path);
		wl_child_ready();
		wl_wait();
		stay_until_told();
		_exit(0);
	}
	return child;
}

static void check_alone(int file)
{
	int there = MUST(open("/run/netns/alone", O_RDONLY | O_CLOEXEC));
	int home = MUST(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	struct stat held;

	CHECK(inode("/run/netns/alone") == inode("/again"), "its two names are of two namespaces");
	MUST(fstat(file, &held));
	CHECK(held.st_ino == inode("/again"), "what is open is another namespace");
	MUST(setns(file, CLONE_NEWNET));
	CHECK(holds(TTL, "77\n") && loopback_is_up(), "the network without processes is another");
	MUST(setns(home, CLONE_NEWNET));
	MUST(setns(there, CLONE_NEWNET));
	CHECK(holds(TTL, "77\n"), "the name leads to another network");
	MUST(setns(home, CLONE_NEWNET));
	close(there);
	close(home);
}

static void child(void)
{
	pid_t worker, entered;
	int file;

	MUST(pipe(stay));
	own_root();
	mounted("proc", "/proc", 0, NULL);
	mounted("tmpfs", "/run", 0, NULL);
	directory("/run/netns");
	bound("/run/netns", "/run/netns");
	changed("/run/netns", MS_SHARED | MS_REC);
	MUST(unshare(CLONE_NEWUTS));
	named("/proc/self/ns/uts", "/uts");
	named("/proc/self/ns/net", "/run/netns/home");
	worker = makes_its_own("/run/netns/worker");
	added("/run/netns/alone", "77");
	named("/run/netns/alone", "/again");
	changed("/again", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID);
	/* Hidden by a file, as others upon others. */
	put("/plain", "plain");
	named("/proc/self/ns/net", "/run/netns/hidden");
	MUST(mount("/plain", "/run/netns/hidden", NULL, MS_BIND, NULL));
	added("/run/netns/entered", "78");
	entered = runs_in("/run/netns/entered");
	file = MUST(open("/run/netns/alone", O_RDONLY));
	wl_child_ready();
	wl_wait();
	if (wl_lose)
		MUST(umount("/run/netns/alone"));
	CHECK(inode("/uts") == inode_of(getpid(), "uts"), "the host's name is another");
	CHECK(inode("/run/netns/home") == inode_of(getpid(), "net"), "the network of the host is another");
	CHECK(inode("/run/netns/worker") == inode_of(worker, "net"), "the network of the worker is another");
	CHECK(inode("/run/netns/entered") == inode_of(entered, "net"), "the network that was entered is another");
	check_alone(file);
	CHECK(holds("/run/netns/hidden", "plain"), "what hides a name is another");
	MUST(umount("/run/netns/hidden"));
	CHECK(inode("/run/netns/hidden") == inode_of(getpid(), "net"), "the hidden name is another's");
	close(stay[1]);
	wl_join(worker);
	wl_join(entered);
	_exit(0);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	leave_to(child);
}
