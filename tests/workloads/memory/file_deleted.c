/* A mapped file that has been deleted: shared between two processes that hold no descriptor of it. */
#include "workload.h"

#define SIZE (9 * 4096)

int main(int argc, char **argv)
{
	uint8_t *map, *mine;
	pid_t child;
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("gone"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, SIZE));
	map = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	mine = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	wl_fill(map, SIZE, 4);
	mine[0] = 1;
	MUST(close(fd));
	MUST(unlink(wl_path("gone")));
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(*(volatile uint8_t *)(map + 8192) == 'p', "the child's mapping is another file");
		CHECK(wl_differs(map + 4096, 4096, 0) != -1 && map[4096] == wl_byte(4, 4096), "the child's contents differ");
		map[0] = 'c';
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		memset(map, 0, 4096);
	CHECK(wl_differs(map, SIZE, 4) < 0, "the deleted file differs at %zd", wl_differs(map, SIZE, 4));
	CHECK(mine[0] == 1 && mine[4096] == wl_byte(4, 4096), "the private mapping of it differs");
	CHECK(strstr(wl_mapping(map, NULL), "gone (deleted)"), "the mapping is '%s'", wl_mapping(map, NULL));
	CHECK(access(wl_path("gone"), F_OK) < 0, "the deleted file has come back");
	map[8192] = 'p';
	wl_join(child);
	CHECK(map[0] == 'c', "a write by the child is not seen");
	wl_ok();
}
