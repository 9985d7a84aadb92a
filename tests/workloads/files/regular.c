/* Regular files: position, access mode and status flags of each open; a hole in the numbers; what is written next. */
#include "workload.h"

static const struct {
	int flags;
	off_t position;
} opens[] = {
	{ O_RDONLY, 3 },
	{ O_WRONLY, 10 },
	{ O_RDWR, 0 },
	{ O_RDWR | O_APPEND, 5 },
	{ O_RDWR | O_NONBLOCK, 100 },
	{ O_WRONLY | O_SYNC, 7 },
	{ O_RDONLY | O_NOATIME, 1 },
	{ O_RDWR | O_DSYNC | O_LARGEFILE, 3l << 32 },
	{ O_RDONLY | O_NOFOLLOW, 0 },
	{ O_RDWR | O_DIRECT, 512 },
};
#define COUNT ((int)(sizeof(opens) / sizeof(opens[0])))

int main(int argc, char **argv)
{
	int fds[COUNT], flags[COUNT];
	char text[32];
	struct stat status;

	wl_init(argc, argv);
	fds[0] = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0640));
	MUST(write(fds[0], "the quick brown fox", 19));
	MUST(close(fds[0]));
	for (int i = 0; i < COUNT; i++) {
		fds[i] = MUST(dup2(MUST(open(wl_path("file"), opens[i].flags)), 50 + i * 7));
		MUST(close(3));
		MUST(lseek(fds[i], opens[i].position, SEEK_SET));
		flags[i] = MUST(fcntl(fds[i], F_GETFL));
	}

	wl_ready();
	if (wl_lose)
		MUST(lseek(fds[4], 0, SEEK_SET));
	for (int i = 0; i < COUNT; i++) {
		int now = MUST(fcntl(fds[i], F_GETFL));

		CHECK(now == flags[i], "open %d: flags were %#o, are %#o", i, flags[i], now);
		CHECK(lseek(fds[i], 0, SEEK_CUR) == opens[i].position, "open %d: position was %ld, is %ld", i, (long)opens[i].position,
		      (long)lseek(fds[i], 0, SEEK_CUR));
	}
	CHECK(read(fds[0], text, 6) == 6 && memcmp(text, " quick", 6) == 0, "another place is read");
	CHECK(write(fds[3], "!", 1) == 1 && lseek(fds[3], 0, SEEK_CUR) == 20, "an append does not go to the end");
	MUST(fstat(fds[0], &status));
	CHECK(status.st_size == 20, "the file's size is %ld", (long)status.st_size);
	CHECK(fcntl(3, F_GETFD) < 0 && fcntl(51, F_GETFD) < 0, "descriptors out of nowhere");
	wl_ok();
}
