/* Pipes with data in them: small, full, with both ends here, with one end in a child, with no writer left. */
#include "workload.h"

int main(int argc, char **argv)
{
	static uint8_t data[65536];
	int small[2], full[2], apart[2], ended[2], lonely[2];
	pid_t child;
	char text[16] = "";

	wl_init(argc, argv);
	MUST(pipe(small));
	MUST(pipe2(full, O_NONBLOCK | O_CLOEXEC));
	MUST(pipe(apart));
	MUST(pipe(ended));
	MUST(pipe(lonely));
	MUST(write(small[1], "one", 3));
	MUST(write(small[1], "two", 3));
	wl_fill(data, sizeof(data), 1);
	MUST(write(full[1], data, sizeof(data)));
	MUST(write(apart[1], "apart", 5));
	MUST(write(ended[1], "the end", 7));
	MUST(close(ended[1]));
	/* No reader: writing raises SIGPIPE. */
	MUST(close(lonely[0]));
	child = wl_fork();
	if (child == 0) {
		MUST(close(apart[1]));
		MUST(close(small[0]));
		MUST(close(small[1]));
		wl_child_ready();
		wl_wait();
		CHECK(read(apart[0], text, 5) == 5 && memcmp(text, "apart", 5) == 0, "the child reads '%s'", text);
		CHECK(read(apart[0], text, 5) == 4 && memcmp(text, "more", 4) == 0, "the child then reads '%s'", text);
		_exit(0);
	}
	MUST(close(apart[0]));

	wl_ready();
	if (wl_lose)
		MUST(read(small[0], text, 1));
	signal(SIGPIPE, SIG_IGN);
	CHECK(read(small[0], text, sizeof(text)) == 6 && memcmp(text, "onetwo", 6) == 0, "in the small one was '%s'", text);
	CHECK(write(full[1], "x", 1) < 0 && errno == EAGAIN, "the full one takes more");
	CHECK(read(full[0], data, sizeof(data)) == sizeof(data) && wl_differs(data, sizeof(data), 1) < 0, "the full one's data differ");
	CHECK(read(full[0], data, 1) < 0 && errno == EAGAIN, "the full one blocks, or has ended");
	CHECK(fcntl(full[0], F_GETFD) == FD_CLOEXEC && fcntl(small[0], F_GETFL) == O_RDONLY && fcntl(small[1], F_GETFL) == O_WRONLY, "flags differ");
	CHECK(read(ended[0], text, sizeof(text)) == 7 && memcmp(text, "the end", 7) == 0, "in the ended one was '%s'", text);
	CHECK(read(ended[0], text, 1) == 0, "the ended one has a writer");
	CHECK(write(lonely[1], "x", 1) < 0 && errno == EPIPE, "the one without reader has one");
	MUST(write(apart[1], "more", 4));
	wl_join(child);
	wl_ok();
}
