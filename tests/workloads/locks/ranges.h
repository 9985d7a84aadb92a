/* POSIX record locks of a parent and its child, which opens the file for itself or uses the parent's descriptor. */
#ifndef RANGES_H
#define RANGES_H

#include "workload.h"

static const struct range {
	short kind;
	off_t start, length;
} ranges[] = { { F_WRLCK, 0, 10 }, { F_RDLCK, 20, 5 }, { F_WRLCK, 100, 1 }, { F_RDLCK, 1l << 33, 0 } };
#define COUNT ((int)(sizeof(ranges) / sizeof(ranges[0])))

static void take(int fd, struct range range)
{
	struct flock lock = { .l_type = range.kind, .l_whence = SEEK_SET, .l_start = range.start, .l_len = range.length };

	MUST(fcntl(fd, F_SETLK, &lock));
}

/* Who stands in the way of a write lock at one byte: start, length, kind and pid. */
static struct flock blocker(int fd, off_t at)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };

	MUST(fcntl(fd, F_GETLK, &lock));
	return lock;
}

static void ranges_main(int argc, char **argv, bool shared)
{
	pid_t child, parent = getpid();
	struct flock found;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0600));
	for (int i = 0; i < COUNT; i++)
		take(fd, ranges[i]);
	child = wl_fork();
	if (child == 0) {
		if (!shared) {
			MUST(close(fd));
			fd = MUST(open(wl_path("file"), O_RDWR));
		}
		take(fd, (struct range){ F_WRLCK, 50, 20 });
		wl_child_ready();
		wl_wait();
		for (int i = 0; i < COUNT; i++) {
			found = blocker(fd, ranges[i].start);
			CHECK(found.l_type == ranges[i].kind && found.l_start == ranges[i].start && found.l_len == ranges[i].length && found.l_pid == parent,
			      "range %d: kind %d from %ld of %ld by %d", i, found.l_type, (long)found.l_start, (long)found.l_len, found.l_pid);
		}
		CHECK(blocker(fd, 15).l_type == F_UNLCK && blocker(fd, 30).l_type == F_UNLCK, "something between the ranges is locked");
		if (wl_lose)
			take(fd, (struct range){ F_UNLCK, 50, 20 });
		close(MUST(open(wl_path("child-looked"), O_CREAT | O_WRONLY, 0600)));
		WAIT_FOR(access(wl_path("parent-looked"), F_OK) == 0, "the parent does not look");
		_exit(0);
	}

	wl_ready();
	WAIT_FOR(access(wl_path("child-looked"), F_OK) == 0, "the child does not look");
	found = blocker(fd, 60);
	CHECK(found.l_type == F_WRLCK && found.l_start == 50 && found.l_len == 20 && found.l_pid == child, "the child's: kind %d from %ld of %ld by %d",
	      found.l_type, (long)found.l_start, (long)found.l_len, found.l_pid);
	MUST(close(MUST(creat(wl_path("parent-looked"), 0666))));
	wl_join(child);
	CHECK(blocker(fd, 60).l_type == F_UNLCK, "the child's lock outlives it");
	wl_ok();
}

#endif
