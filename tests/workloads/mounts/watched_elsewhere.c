// peer: no, it needs to be told the root by --root
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor fdinfo.watched, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
/* Watches of a directory and a file that only another process has mounted. */
#include <poll.h>
#include <sys/inotify.h>

#include "mounts.h"

enum { PLACE = 100 };

/* Waits for events of both watches, and tells which have come. */
static unsigned come(int watches, const int wd[2], unsigned wanted)
{
	char events[4096] __attribute__((aligned(8)));
	unsigned seen = 0;

	while (seen != wanted) {
		struct pollfd asked = { .fd = watches, .events = POLLIN };
		ssize_t length;

		if (poll(&asked, 1, 5000) <= 0)
			break;
		length = MUST(read(watches, events, sizeof(events)));
		for (char *at = events; at < events + length;) {
			struct inotify_event *event = (struct inotify_event *)at;

			seen |= (event->wd == wd[0] && event->mask & IN_CREATE ? 1 : 0) | (event->wd == wd[1] && event->mask & IN_MODIFY ? 2 : 0);
			at += sizeof(*event) + event->len;
		}
	}
	return seen;
}

int main(int argc, char **argv)
{
	int watches, wd[2];
	char path[64];
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		own_root();
		mounted("tmpfs", "/a", 0, NULL);
		put("/a/file", "before");
		MUST(dup2(MUST(open("/a", O_RDONLY | O_DIRECTORY)), PLACE));
		wl_child_ready();
		wl_wait();
		while (access("/begin", F_OK) < 0)
			wl_sleep_ms(5);
		put("/a/new", "new");
		put("/a/file", "after");
		/* The watches are there as long as what they watch. */
		while (access("/done", F_OK) < 0)
			wl_sleep_ms(5);
		_exit(0);
	}
	watches = MUST(inotify_init1(IN_CLOEXEC));
	snprintf(path, sizeof(path), "/proc/%d/fd/%d/.", child, PLACE);
	wd[0] = MUST(inotify_add_watch(watches, path, IN_CREATE));
	snprintf(path, sizeof(path), "/proc/%d/fd/%d/file", child, PLACE);
	wd[1] = MUST(inotify_add_watch(watches, path, IN_MODIFY));

	wl_ready();
	if (wl_lose)
		MUST(inotify_rm_watch(watches, wd[1]));
	/* Not before: what has come is told also when the watch is gone. */
	close(MUST(open(wl_path("begin"), O_CREAT | O_WRONLY, 0600)));
	CHECK(come(watches, wd, 3) == 3, "what is watched does not tell");
	close(MUST(open(wl_path("done"), O_CREAT | O_WRONLY, 0600)));
	wl_join(child);
	wl_ok();
}
