/* fanotify: marks on a file, and on a directory for its children; nothing in the queue. What /proc tells of it is open. */
#include <sys/fanotify.h>

#include "workload.h"

/* The masks of all events that are there now, together. */
static uint64_t take(int fd)
{
	struct fanotify_event_metadata events[32];
	ssize_t length = read(fd, events, sizeof(events));
	uint64_t masks = 0;

	if (length <= 0)
		return 0;
	for (struct fanotify_event_metadata *event = events; FAN_EVENT_OK(event, length); event = FAN_EVENT_NEXT(event, length)) {
		masks |= event->mask;
		if (event->fd >= 0)
			close(event->fd);
	}
	return masks;
}

int main(int argc, char **argv)
{
	char path[64];
	int fd;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("directory"), 0700));
	close(MUST(creat(wl_path("directory/child"), 0600)));
	close(MUST(creat(wl_path("file"), 0600)));
	fd = MUST(fanotify_init(FAN_NONBLOCK | FAN_CLASS_NOTIF | FAN_CLOEXEC, O_RDONLY | O_LARGEFILE));
	MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, wl_path("file")));
	MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, wl_path("directory")));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	MUST(open(path, O_RDONLY));

	wl_ready();
	if (wl_lose)
		MUST(fanotify_mark(fd, FAN_MARK_REMOVE, FAN_MODIFY, AT_FDCWD, wl_path("file")));
	take(fd);
	close(MUST(open(wl_path("file"), O_RDONLY)));
	CHECK(take(fd) == 0, "the file's mark gives events that were not asked for");
	{
		int file = MUST(open(wl_path("file"), O_WRONLY));

		MUST(write(file, "x", 1));
		close(file);
	}
	CHECK(take(fd) == FAN_MODIFY, "the file's mark gives no event");
	close(MUST(open(wl_path("directory/child"), O_RDONLY)));
	CHECK(take(fd) == FAN_OPEN, "the directory's mark gives no event for its child");
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
	wl_ok();
}
