/* Helpers of workloads that have a mount namespace of their own. */
#ifndef MOUNTS_H
#define MOUNTS_H

#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "workload.h"

/* Moves the caller into a mount namespace of its own whose root is the workload's directory, with nothing else in it. */
WL_UNUSED static void own_root(void)
{
	MUST(unshare(CLONE_NEWNS));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount(wl_dir, wl_dir, NULL, MS_BIND, NULL));
	MUST(chdir(wl_dir));
	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(chdir("/"));
	strcpy(wl_dir, "/");
}

WL_UNUSED static void directory(const char *path)
{
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		wl_fail("mkdir %s: %m", path);
}

/* Makes a directory and mounts a file system upon it. */
WL_UNUSED static void mounted(const char *type, const char *path, unsigned long flags, const char *options)
{
	directory(path);
	if (mount(type, path, type, flags, options) < 0)
		wl_fail("mount %s: %m", path);
}

/* Makes a directory and binds another there. */
WL_UNUSED static void bound(const char *from, const char *path)
{
	directory(path);
	if (mount(from, path, NULL, MS_BIND, NULL) < 0)
		wl_fail("bind %s to %s: %m", from, path);
}

WL_UNUSED static void changed(const char *path, unsigned long how)
{
	if (mount(NULL, path, NULL, how, NULL) < 0)
		wl_fail("change %s: %m", path);
}

WL_UNUSED static void put(const char *path, const char *text)
{
	int fd = MUST(open(path, O_CREAT | O_WRONLY | O_TRUNC, 0640));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

WL_UNUSED static bool holds(const char *path, const char *text)
{
	char found[256] = "";
	int fd = open(path, O_RDONLY);
	ssize_t length = fd < 0 ? -1 : read(fd, found, sizeof(found) - 1);

	if (fd >= 0)
		close(fd);
	return length == (ssize_t)strlen(text) && memcmp(found, text, length) == 0;
}

WL_UNUSED static bool reads(int fd, const char *text)
{
	char found[256] = "";
	ssize_t length = pread(fd, found, sizeof(found) - 1, 0);

	return length == (ssize_t)strlen(text) && memcmp(found, text, length) == 0;
}

/* The whole of a workload whose state a child has, in mounts of its own: the child must wait, prove it and exit. */
WL_UNUSED static void leave_to(void (*child)(void))
{
	pid_t pid = wl_fork();

	if (pid == 0)
		child();
	wl_ready();
	wl_join(pid);
	wl_ok();
}

#endif
