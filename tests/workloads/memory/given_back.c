/* Pages of a private mapping of a file that were the process's own, and were given back: they are the file's again. A thread
 * gives them back when it gets a word, and looks at them at once. */
#include <pthread.h>

#include "workload.h"

#define PAGE 4096
#define PAGES 16
#define GIVEN 8

static volatile uint8_t *map;
static int word;

static void *give_back(void *unused)
{
	char byte;

	MUST(read(word, &byte, 1));
	if (byte != 'x')
		return unused;
	MUST(madvise((void *)map, GIVEN * PAGE, MADV_DONTNEED));
	for (int page = 0; page < GIVEN; page++)
		CHECK(map[page * PAGE] == 1, "page %d is not the file's", page);
	MUST(close(MUST(creat(wl_path("heard"), 0600))));
	return unused;
}

int main(int argc, char **argv)
{
	static uint8_t content[PAGES * PAGE];
	pthread_t thread;
	int fd;

	wl_init(argc, argv);
	memset(content, 1, sizeof(content));
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(write(fd, content, sizeof(content)));
	map = MUST(mmap(NULL, sizeof(content), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	for (int page = 0; page < PAGES; page++)
		map[page * PAGE] = 2;
	MUST(mkfifo(wl_path("word"), 0600));
	word = MUST(open(wl_path("word"), O_RDWR));
	MUST0(pthread_create(&thread, NULL, give_back, NULL));

	wl_ready();
	if (wl_lose)
		map[(PAGES - 1) * PAGE] = 1;
	MUST(write(word, "-", 1));
	MUST0(pthread_join(thread, NULL));
	for (int page = 0; page < PAGES; page++) {
		bool is_files = page < GIVEN && access(wl_path("heard"), F_OK) == 0;

		CHECK(map[page * PAGE] == (is_files ? 1 : 2), "page %d has %d", page, map[page * PAGE]);
	}
	wl_ok();
}
