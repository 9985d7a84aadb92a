/* A pipe whose end was opened again through /proc/self/fd: an open of its own on the same pipe. */
#include "workload.h"

int main(int argc, char **argv)
{
	char path[64], text[8] = "";
	int ends[2], again, other_way;

	wl_init(argc, argv);
	MUST(pipe(ends));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", ends[0]);
	again = MUST(open(path, O_RDONLY | O_NONBLOCK));
	other_way = MUST(open(path, O_RDWR));
	MUST(close(ends[1]));
	MUST(write(other_way, "abc", 3));

	wl_ready();
	if (wl_lose)
		MUST(read(other_way, text, 1));
	CHECK(read(again, text, 3) == 3 && memcmp(text, "abc", 3) == 0, "in the pipe was '%s'", text);
	CHECK(read(again, text, 1) < 0 && errno == EAGAIN, "the second open blocks, or the writer is gone");
	CHECK(!(fcntl(ends[0], F_GETFL) & O_NONBLOCK), "a flag spreads to another open");
	MUST(write(other_way, "d", 1));
	CHECK(read(ends[0], text, 1) == 1 && text[0] == 'd', "the opens are of different pipes");
	wl_ok();
}
