/* One deleted file, opened by three processes in different ways, and mapped by one of them. */
#include "workload.h"

int main(int argc, char **argv)
{
	pid_t children[2];
	uint8_t *map;
	char text[8];
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("deleted"), O_RDWR | O_CREAT, 0666));
	MUST(ftruncate(fd, 8192));
	for (int i = 0; i < 2; i++) {
		children[i] = wl_fork();
		if (children[i] != 0)
			continue;
		MUST(close(fd));
		fd = MUST(open(wl_path("deleted"), i ? O_RDONLY : O_WRONLY | O_APPEND));
		wl_child_ready();
		wl_wait();
		if (i == 0) {
			MUST(write(fd, "append", 6));
			_exit(0);
		}
		WAIT_FOR(pread(fd, text, 4, 4096) == 4 && memcmp(text, "MAP!", 4) == 0, "the reader does not see what was written through the mapping");
		_exit(0);
	}
	map = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	MUST(unlink(wl_path("deleted")));

	wl_ready();
	if (wl_lose)
		MUST(mmap(map, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	wl_join(children[0]);
	CHECK(pread(fd, text, 6, 8192) == 6 && memcmp(text, "append", 6) == 0, "what the writer appended is not there");
	memcpy(map + 4096, "MAP!", 4);
	wl_join(children[1]);
	wl_ok();
}
