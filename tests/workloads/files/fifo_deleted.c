/* A FIFO that has been deleted, with data in it. */
#include "workload.h"

int main(int argc, char **argv)
{
	char text[16] = "";
	struct stat status;
	int reader, writer;

	wl_init(argc, argv);
	MUST(mkfifo(wl_path("gone"), 0620));
	reader = MUST(open(wl_path("gone"), O_RDONLY | O_NONBLOCK));
	writer = MUST(open(wl_path("gone"), O_WRONLY));
	MUST(write(writer, "left over", 9));
	MUST(unlink(wl_path("gone")));

	wl_ready();
	if (wl_lose)
		MUST(read(reader, text, 4));
	MUST(fstat(reader, &status));
	CHECK(S_ISFIFO(status.st_mode) && status.st_nlink == 0 && access(wl_path("gone"), F_OK) < 0, "the deleted FIFO has come back");
	CHECK(read(reader, text, sizeof(text)) == 9 && memcmp(text, "left over", 9) == 0, "in it was '%s'", text);
	MUST(write(writer, "x", 1));
	CHECK(read(reader, text, 1) == 1, "its ends are no longer joined");
	wl_ok();
}
