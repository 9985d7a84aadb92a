// peer: no, CRIU 4.2 makes an ordinary watch of it
/* An inotify watch that ends with its first event. */
#include <sys/inotify.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct inotify_event events[2] = { 0 };
	int fd, watch;

	wl_init(argc, argv);
	close(MUST(creat(wl_path("file"), 0600)));
	fd = MUST(inotify_init1(IN_NONBLOCK));
	watch = MUST(inotify_add_watch(fd, wl_path("file"), IN_ATTRIB | IN_ONESHOT));

	wl_ready();
	if (wl_lose)
		MUST(inotify_add_watch(fd, wl_path("file"), IN_ATTRIB));
	MUST(chmod(wl_path("file"), 0640));
	CHECK(read(fd, events, sizeof(events)) == sizeof(events), "the watch gives no two events");
	CHECK(events[0].wd == watch && events[0].mask == IN_ATTRIB && events[1].mask == IN_IGNORED, "masks are %#x and %#x", events[0].mask,
	      events[1].mask);
	wl_ok();
}
