/* Pipe capacities: one page, the largest that anybody may have, with data to the brim. */
#include "workload.h"

static const int sizes[] = { 4096, 65536, 1 << 18, 1 << 20 };

int main(int argc, char **argv)
{
	static uint8_t data[1 << 20];
	int pipes[4][2];

	wl_init(argc, argv);
	for (int i = 0; i < 4; i++) {
		MUST(pipe2(pipes[i], O_NONBLOCK));
		MUST(fcntl(pipes[i][0], F_SETPIPE_SZ, sizes[i]));
		wl_fill(data, sizes[i], i);
		CHECK(write(pipes[i][1], data, sizes[i]) == sizes[i], "pipe %d takes no %d bytes", i, sizes[i]);
	}

	wl_ready();
	if (wl_lose) {
		MUST(read(pipes[3][0], data, sizes[3]));
		MUST(fcntl(pipes[3][0], F_SETPIPE_SZ, 65536));
	}
	for (int i = 0; i < 4; i++) {
		CHECK(fcntl(pipes[i][1], F_GETPIPE_SZ) == sizes[i], "pipe %d: capacity was %d, is %d", i, sizes[i], fcntl(pipes[i][1], F_GETPIPE_SZ));
		for (int done = 0; done < sizes[i];) {
			ssize_t got = read(pipes[i][0], data + done, sizes[i] - done);

			CHECK(got > 0, "pipe %d ends after %d bytes", i, done);
			done += got;
		}
		CHECK(wl_differs(data, sizes[i], i) < 0, "pipe %d: data differ at %zd", i, wl_differs(data, sizes[i], i));
	}
	wl_ok();
}
