// gap: unread events of inotify are dropped, with a warning
// peer: no, CRIU 4.2 drops what is in the queue
/* inotify events that nobody has read yet. */
#include <sys/inotify.h>

#include "workload.h"

int main(int argc, char **argv)
{
	char space[4096] __attribute__((aligned(8)));
	struct inotify_event *event = (struct inotify_event *)space;
	int fd, watch;
	ssize_t length;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("directory"), 0700));
	fd = MUST(inotify_init1(IN_NONBLOCK));
	watch = MUST(inotify_add_watch(fd, wl_path("directory"), IN_CREATE));
	close(MUST(creat(wl_path("directory/early"), 0600)));

	wl_ready();
	if (wl_lose)
		MUST(read(fd, space, sizeof(space)));
	length = read(fd, space, sizeof(space));
	CHECK(length > 0, "the unread event is lost");
	CHECK(event->wd == watch && event->mask == IN_CREATE && strcmp(event->name, "early") == 0, "the event is another: watch %d mask %#x", event->wd,
	      event->mask);
	close(MUST(creat(wl_path("directory/later"), 0600)));
	CHECK(read(fd, space, sizeof(space)) > 0 && strcmp(event->name, "later") == 0, "no event for a new file");
	wl_ok();
}
