/* Pages that an image need not have, since they are there without it: of zeros, much of them and little, and such as their
 * file has them. They are the process's own nonetheless. */
// peer: no, with CRIU a page that is as its file has it, and is not stored, follows the file again
#include "workload.h"

#define PAGE 4096l
#define LITTLE (64 * PAGE)
#define MUCH (24l << 20)
#define PAGES 16

static uint8_t *zeros(long len)
{
	uint8_t *map = MUST(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	MUST(madvise(map, len, MADV_NOHUGEPAGE));
	memset(map, 1, len);
	memset(map, 0, len);
	/* Not quite: the last byte of some pages, the first of others, and one in the middle. */
	for (long at = 0; at < len; at += 16 * PAGE) {
		map[at + PAGE - 1] = 7;
		map[at + 5 * PAGE] = 8;
		map[at + 9 * PAGE + 100] = 9;
	}
	return map;
}

static void check(const uint8_t *map, long len)
{
	static const uint8_t empty[PAGE];

	for (long at = 0; at < len; at += PAGE) {
		long index = at / PAGE % 16;

		CHECK(index != 0 || map[at + PAGE - 1] == 7, "the last byte of the page at %ld is lost", at);
		CHECK(index != 5 || map[at] == 8, "the first byte of the page at %ld is lost", at);
		CHECK(index != 9 || map[at + 100] == 9, "a byte of the page at %ld is lost", at);
		CHECK(index % 4 != 3 || memcmp(map + at, empty, PAGE) == 0, "the page at %ld is not of zeros", at);
	}
}

int main(int argc, char **argv)
{
	static uint8_t content[PAGES * PAGE];
	uint8_t *little, *much, *map, *fixed;
	int fd;

	wl_init(argc, argv);
	little = zeros(LITTLE);
	much = zeros(MUCH);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	wl_fill(content, sizeof(content), 1);
	/* The last page is not a whole one. */
	MUST(write(fd, content, sizeof(content) - 1000));
	map = MUST(mmap(NULL, sizeof(content), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	fixed = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 2 * PAGE));
	for (int page = 0; page < PAGES; page += 2)
		*(volatile uint8_t *)(map + page * PAGE) = content[page * PAGE];
	map[PAGE] ^= 1;
	*(volatile uint8_t *)fixed = content[2 * PAGE];
	MUST(mprotect(fixed, 4 * PAGE, PROT_READ));

	wl_ready();
	if (wl_lose)
		little[PAGE - 1] = 0;
	check(little, LITTLE);
	check(much, MUCH);
	CHECK(map[PAGE] == (content[PAGE] ^ 1), "a page that was changed is not");
	/* What was written, if only what was there before, does not follow the file. */
	for (int page = 0; page < PAGES; page++)
		MUST(pwrite(fd, "!", 1, page * PAGE + 1));
	for (int page = 2; page < PAGES; page++) {
		uint8_t expected = page % 2 == 0 ? content[page * PAGE + 1] : '!';

		CHECK(map[page * PAGE + 1] == expected, "page %d follows the file %s", page, page % 2 ? "no more" : "again");
	}
	CHECK(fixed[1] == content[2 * PAGE + 1] && fixed[PAGE + 1] == '!', "pages that cannot be written to differ");
	wl_ok();
}
