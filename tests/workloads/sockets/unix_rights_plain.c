/* Descriptors on their way in messages that were not read, as most programs send them: files that nobody else has, and
 * such that the process has as well. */
#include "unix.h"

static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };

int main(int argc, char **argv)
{
	int carrier[3][2], shared, ends[2], files[2];
	char text[64] = "";

	wl_init(argc, argv);
	shared = MUST(open(wl_path("shared"), O_RDWR | O_CREAT, 0600));
	MUST(write(shared, "0123456789", 10));
	for (int i = 0; i < 3; i++) {
		unix_pair(types[i], carrier[i]);
		MUST(pipe(ends));
		MUST(write(ends[1], "in the pipe", 11));
		unix_gives(carrier[i][0], "pipe", ends, 2, false);
		unix_gives(carrier[i][0], "file", &shared, 1, true);
	}

	wl_ready();
	if (wl_lose)
		MUST(recv(carrier[1][1], text, 1, 0));
	for (int i = 0; i < 3; i++) {
		char what[32];

		snprintf(what, sizeof(what), "carrier %d", i);
		unix_takes(carrier[i][1], 32, "pipe", ends, 2, what);
		CHECK(read(ends[0], text, sizeof(text)) == 11 && memcmp(text, "in the pipe", 11) == 0, "%s: the pipe is empty", what);
		unix_takes(carrier[i][1], 32, "file", files, 1, what);
		MUST(lseek(shared, i, SEEK_SET));
		CHECK(lseek(files[0], 0, SEEK_CUR) == i, "%s: the file is no more shared", what);
		unix_is_empty(carrier[i][1], what);
	}
	wl_ok();
}
