// peer: no, CRIU 4.2 wants a user namespace with all others
// differs: descriptor file.owner, an inode without a name that was made before belongs to the root of the namespace afterwards
// differs: process ns.user, the number of a namespace, of which the kernel gives each another
/* A user namespace in which setgroups(2) is forbidden, of a process in groups of which one has no number there. */
#include <grp.h>
#include <sched.h>

#include "workload.h"

static void write_file(const char *name, const char *text)
{
	int fd = MUST(open(name, O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static void check_groups(void)
{
	gid_t groups[8];
	int count = MUST(getgroups(8, groups));
	char text[8] = "";
	int fd = MUST(open("/proc/self/setgroups", O_RDONLY | O_CLOEXEC));

	CHECK(count == 2 && groups[0] + groups[1] == 65534, "%d groups, %u and %u", count, groups[0], groups[1]);
	MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	CHECK(strncmp(text, "deny", 4) == 0, "setgroups: %s", text);
	CHECK(setgroups(0, NULL) < 0 && errno == EPERM, "groups may be set");
}

int main(int argc, char **argv)
{
	gid_t groups[2] = { 0, 4711 };

	wl_init(argc, argv);
	MUST(setgroups(2, groups));
	MUST(unshare(CLONE_NEWUSER));
	write_file("/proc/self/setgroups", "deny");
	write_file("/proc/self/uid_map", "0 0 1\n");
	write_file("/proc/self/gid_map", "0 0 1\n");
	wl_ready();
	/* In another one without maps nobody has a number. */
	if (wl_lose)
		MUST(unshare(CLONE_NEWUSER));
	check_groups();
	wl_ok();
}
