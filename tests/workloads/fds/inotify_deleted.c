// peer: no, CRIU 4.2 leaves events of its own in the queue
/* An inotify watch on a file that has been deleted while it is open, and on the directory that it was in. */
#include <sys/inotify.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct inotify_event event = { 0 };
	int fd, watch, deleted;
	char buffer[512];

	wl_init(argc, argv);
	deleted = MUST(open(wl_path("deleted"), O_CREAT | O_RDWR, 0600));
	fd = MUST(inotify_init1(IN_NONBLOCK));
	watch = MUST(inotify_add_watch(fd, wl_path("deleted"), IN_MODIFY));
	MUST(mkdir(wl_path("directory"), 0700));
	MUST(inotify_add_watch(fd, wl_path("directory"), IN_CREATE | IN_DELETE));
	MUST(rename(wl_path("deleted"), wl_path("directory/deleted")));
	MUST(unlink(wl_path("directory/deleted")));
	MUST(read(fd, buffer, sizeof(buffer)));

	wl_ready();
	if (wl_lose)
		MUST(write(deleted, "w", 1));
	CHECK(read(fd, &event, sizeof(event)) < 0 && errno == EAGAIN, "an event out of nowhere: watch %d mask %#x", event.wd, event.mask);
	MUST(write(deleted, "x", 1));
	CHECK(read(fd, &event, sizeof(event)) == sizeof(event) && event.wd == watch && event.mask == IN_MODIFY, "watch %d gives mask %#x", event.wd,
	      event.mask);
	wl_ok();
}
