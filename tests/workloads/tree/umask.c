/* The umask of two processes. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat status;
	pid_t child;

	wl_init(argc, argv);
	umask(0027);
	child = wl_fork();
	if (child == 0) {
		umask(0111);
		wl_child_ready();
		wl_wait();
		CHECK(umask(0) == 0111, "the child's is lost");
		_exit(0);
	}
	wl_ready();
	if (wl_lose)
		umask(0);
	close(MUST(open(wl_path("made"), O_CREAT | O_WRONLY, 0777)));
	MUST(stat(wl_path("made"), &status));
	CHECK((status.st_mode & 0777) == 0750, "a new file has mode %o", status.st_mode & 0777);
	wl_join(child);
	wl_ok();
}
