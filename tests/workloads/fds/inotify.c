/* inotify: watches with their numbers and masks, on a directory, a file; nothing in the queue. */
#include <sys/inotify.h>

#include "workload.h"

/* The next event of the watch `wanted`, 0 if there is none; complains of another watch's. */
static uint32_t next(int fd, int wanted, char *name)
{
	static char space[4096] __attribute__((aligned(8)));
	static ssize_t length, used;
	struct inotify_event *event;

	if (used >= length) {
		used = 0;
		length = read(fd, space, sizeof(space));
	}
	if (length <= 0)
		return 0;
	event = (struct inotify_event *)(space + used);
	used += sizeof(*event) + event->len;
	CHECK(event->wd == wanted, "an event of watch %d (mask %#x) instead of %d", event->wd, event->mask, wanted);
	if (name)
		snprintf(name, NAME_MAX, "%s", event->len ? event->name : "");
	return event->mask;
}

int main(int argc, char **argv)
{
	int fd, directory, file, gone;
	char name[NAME_MAX] = "";

	wl_init(argc, argv);
	MUST(mkdir(wl_path("directory"), 0700));
	close(MUST(creat(wl_path("file"), 0600)));
	fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	gone = MUST(inotify_add_watch(fd, wl_path("file"), IN_ALL_EVENTS));
	directory = MUST(inotify_add_watch(fd, wl_path("directory"), IN_CREATE | IN_DELETE | IN_ONLYDIR));
	MUST(inotify_rm_watch(fd, gone));
	while (next(fd, gone, NULL))
		;
	/* The numbers have a gap now. */
	file = MUST(inotify_add_watch(fd, wl_path("file"), IN_MODIFY | IN_ATTRIB));

	wl_ready();
	if (wl_lose)
		MUST(inotify_rm_watch(fd, directory));
	CHECK(next(fd, 0, NULL) == 0 || wl_lose, "an event of the checkpoint itself is in the queue");
	close(MUST(creat(wl_path("directory/new"), 0600)));
	CHECK(next(fd, directory, name) == IN_CREATE && strcmp(name, "new") == 0, "the directory's watch gives no event for a new file");
	MUST(chmod(wl_path("directory/new"), 0640));
	CHECK(next(fd, directory, NULL) == 0, "the directory's watch gives events that were not asked for");
	MUST(chmod(wl_path("file"), 0640));
	CHECK(next(fd, file, NULL) == IN_ATTRIB, "the file's watch gives no event");
	CHECK(inotify_add_watch(fd, wl_path("directory"), IN_CREATE) == directory, "the directory is watched under another number");
	wl_ok();
}
