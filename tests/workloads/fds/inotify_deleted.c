// refused: which has been deleted
// peer: no, CRIU 4.2 leaves events of its own in the queue
/* An inotify watch on a file that has been deleted while it is open. */
#include <sys/inotify.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct inotify_event event = { 0 };
	int fd, watch, deleted;

	wl_init(argc, argv);
	deleted = MUST(open(wl_path("deleted"), O_CREAT | O_RDWR, 0600));
	fd = MUST(inotify_init1(IN_NONBLOCK));
	watch = MUST(inotify_add_watch(fd, wl_path("deleted"), IN_MODIFY));
	MUST(unlink(wl_path("deleted")));

	wl_ready();
	if (wl_lose)
		MUST(write(deleted, "w", 1));
	CHECK(read(fd, &event, sizeof(event)) < 0 && errno == EAGAIN, "an event out of nowhere: watch %d mask %#x", event.wd, event.mask);
	MUST(write(deleted, "x", 1));
	CHECK(read(fd, &event, sizeof(event)) == sizeof(event) && event.wd == watch && event.mask == IN_MODIFY, "watch %d gives mask %#x", event.wd,
	      event.mask);
	wl_ok();
}
