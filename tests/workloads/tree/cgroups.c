// peer: no, CRIU 4.2 finds no set of cgroups for the child
/* A process in a cgroup of its own, its child in one below that, a grandchild back where the caller is. Version 2. */
#include <sys/mount.h>

#include "workload.h"

static char home[PATH_MAX], own[PATH_MAX], below[PATH_MAX];

/* The path of this process in the hierarchy of version 2. */
static void where(char *path)
{
	char line[PATH_MAX + 8];
	FILE *file = fopen("/proc/self/cgroup", "re");

	MUST(file ? 0 : -1);
	path[0] = 0;
	while (fgets(line, sizeof(line), file))
		if (strncmp(line, "0::", 3) == 0) {
			line[strcspn(line, "\n")] = 0;
			snprintf(path, PATH_MAX, "%s", line + 3);
		}
	fclose(file);
}

static const char *file_of(const char *cgroup, const char *name)
{
	static char path[3 * PATH_MAX];

	snprintf(path, sizeof(path), "%s%s/%s", wl_path("cgroups"), cgroup, name);
	return path;
}

static void put(const char *cgroup, const char *name, const char *value)
{
	int fd = MUST(open(file_of(cgroup, name), O_WRONLY | O_CLOEXEC));

	MUST(write(fd, value, strlen(value)));
	close(fd);
}

static void reach(void)
{
	if (mkdir(wl_path("cgroups"), 0700) < 0)
		MUST(errno == EEXIST ? 0 : -1);
	MUST(mount("none", wl_path("cgroups"), "cgroup2", 0, NULL));
}

static void leave(void)
{
	MUST(umount2(wl_path("cgroups"), MNT_DETACH));
	MUST(rmdir(wl_path("cgroups")));
}

static void check(const char *wanted)
{
	char now[PATH_MAX];

	where(now);
	CHECK(strcmp(now, wanted) == 0, "in the cgroup %s, not in %s", now, wanted);
}

int main(int argc, char **argv)
{
	char value[16] = "";
	pid_t child, grandchild;
	int fd;

	wl_init(argc, argv);
	where(home);
	snprintf(own, sizeof(own), "%s/cryonaut-%d", strcmp(home, "/") ? home : "", getpid());
	snprintf(below, sizeof(below), "%s/below", own);
	reach();
	MUST(mkdir(file_of(own, ""), 0750));
	MUST(mkdir(file_of(below, ""), 0700));
	put(own, "cgroup.max.depth", "7");
	put(own, "cgroup.procs", "0");
	child = wl_fork();
	if (child == 0) {
		put(below, "cgroup.procs", "0");
		grandchild = wl_fork();
		if (grandchild == 0) {
			put(home, "cgroup.procs", "0");
			wl_child_ready();
			wl_wait();
			check(home);
			_exit(0);
		}
		wl_child_ready();
		wl_wait();
		check(below);
		wl_join(grandchild);
		_exit(0);
	}
	leave();
	wl_ready();
	reach();
	if (wl_lose) {
		put(home, "cgroup.procs", "0");
	}
	fd = MUST(open(file_of(own, "cgroup.max.depth"), O_RDONLY | O_CLOEXEC));
	MUST(read(fd, value, sizeof(value) - 1));
	close(fd);
	CHECK(strcmp(value, "7\n") == 0, "the depth is limited to %s", value);
	check(own);
	put(home, "cgroup.procs", "0");
	wl_join(child);
	MUST(rmdir(file_of(below, "")));
	MUST(rmdir(file_of(own, "")));
	leave();
	wl_ok();
}
