/* FIFOs: data in them, both ends in one process and in two, one opened for both directions, read-only with no writer. */
#include "workload.h"

int main(int argc, char **argv)
{
	int reader, writer, both, lonely, child_writer, flags;
	char text[16] = "";
	pid_t child;

	wl_init(argc, argv);
	MUST(mkfifo(wl_path("one"), 0600));
	MUST(mkfifo(wl_path("both"), 0600));
	MUST(mkfifo(wl_path("lonely"), 0600));
	reader = MUST(open(wl_path("one"), O_RDONLY | O_NONBLOCK));
	writer = MUST(open(wl_path("one"), O_WRONLY));
	both = MUST(open(wl_path("both"), O_RDWR));
	lonely = MUST(open(wl_path("lonely"), O_RDONLY | O_NONBLOCK));
	MUST(write(writer, "inside", 6));
	flags = MUST(fcntl(writer, F_GETFL));
	MUST(write(both, "second", 6));
	child = wl_fork();
	if (child == 0) {
		MUST(close(reader));
		MUST(close(writer));
		child_writer = MUST(open(wl_path("one"), O_WRONLY | O_NONBLOCK));
		wl_child_ready();
		wl_wait();
		WAIT_FOR(access(wl_path("read"), F_OK) == 0, "the parent did not read");
		CHECK(write(child_writer, "later", 5) == 5, "the child's end is broken: %s", strerror(errno));
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(read(reader, text, 1));
	CHECK(read(reader, text, sizeof(text)) == 6 && memcmp(text, "inside", 6) == 0, "in the first was '%s'", text);
	CHECK(read(reader, text, sizeof(text)) < 0 && errno == EAGAIN, "the reader blocks, or the writers are gone");
	CHECK(fcntl(writer, F_GETFL) == flags, "the writer's flags were %#o, are %#o", flags, fcntl(writer, F_GETFL));
	CHECK(read(both, text, sizeof(text)) == 6 && memcmp(text, "second", 6) == 0, "in the second was '%s'", text);
	CHECK(read(lonely, text, sizeof(text)) == 0, "the FIFO without writer has one");
	MUST(close(MUST(creat(wl_path("read"), 0666))));
	wl_join(child);
	CHECK(read(reader, text, sizeof(text)) == 5 && memcmp(text, "later", 5) == 0, "the child's words do not arrive");
	wl_ok();
}
