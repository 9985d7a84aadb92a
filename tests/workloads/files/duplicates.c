/* One open shared by several numbers and by parent and child, beside another open of the same file, which is not shared. */
#include "workload.h"

int main(int argc, char **argv)
{
	int first, twin, other;
	pid_t child;

	wl_init(argc, argv);
	first = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(first, 1000));
	twin = MUST(dup(first));
	other = MUST(open(wl_path("file"), O_RDWR));
	MUST(lseek(first, 10, SEEK_SET));
	MUST(lseek(other, 10, SEEK_SET));
	child = wl_fork();
	if (child == 0) {
		MUST(close(first));
		wl_child_ready();
		wl_wait();
		WAIT_FOR(lseek(twin, 0, SEEK_CUR) == 400, "the child does not share the parent's position");
		CHECK(lseek(other, 0, SEEK_CUR) == 20, "the child's position of the other open is %ld", (long)lseek(other, 0, SEEK_CUR));
		MUST(fcntl(twin, F_SETFL, O_APPEND));
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(dup2(other, twin));
	MUST(lseek(other, 20, SEEK_SET));
	MUST(lseek(first, 300, SEEK_SET));
	CHECK(lseek(twin, 0, SEEK_CUR) == 300, "the duplicate has its own position: %ld", (long)lseek(twin, 0, SEEK_CUR));
	CHECK(lseek(other, 0, SEEK_CUR) == 20, "two opens share their position");
	MUST(lseek(twin, 400, SEEK_SET));
	wl_join(child);
	CHECK(fcntl(first, F_GETFL) & O_APPEND, "a flag that the child set is not seen");
	CHECK(!(fcntl(other, F_GETFL) & O_APPEND), "a flag spreads to another open");
	wl_ok();
}
