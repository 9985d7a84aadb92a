// peer: no, CRIU 4.2 knows no io_uring
/* An io_uring whose requests were done by a worker of the kernel, which still stands among the threads of the process. */
#include <dirent.h>

#include "ring.h"

static int threads(void)
{
	DIR *all = opendir("/proc/self/task");
	struct dirent *one;
	int count = 0;

	CHECK(all, "/proc/self/task: %s", strerror(errno));
	while ((one = readdir(all)))
		count += one->d_name[0] != '.';
	closedir(all);
	return count;
}

static void read_by_worker(struct ring *ring, int fd, uint64_t tag)
{
	char text[8] = "";

	ring_read(ring, tag, fd, text, 4, 2);
	ring->entries[(ring->given - 1) & (ring->params.sq_entries - 1)].flags = IOSQE_ASYNC;
	ring_submit(ring, 1);
	ring_take(ring, tag, 4);
	CHECK(memcmp(text, "cdef", 4) == 0, "read '%s'", text);
}

int main(int argc, char **argv)
{
	struct ring ring;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(write(fd, "abcdefgh", 8));
	ring_make(&ring, 4, 0);
	read_by_worker(&ring, fd, 1);
	CHECK(threads() > 1, "no worker of the kernel is there");

	wl_ready();
	if (wl_lose)
		close(ring.fd);
	read_by_worker(&ring, fd, 2);
	wl_ok();
}
