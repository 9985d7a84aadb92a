/* A program whose own file has been deleted. */
#include <sys/sendfile.h>

#include "workload.h"

int main(int argc, char **argv)
{
	char exe[PATH_MAX];
	ssize_t length;

	wl_init(argc, argv);
	length = MUST(readlink("/proc/self/exe", exe, sizeof(exe) - 1));
	exe[length] = 0;
	if (!strstr(exe, "/copy")) {
		int from = MUST(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), to = MUST(open(wl_path("copy"), O_WRONLY | O_CREAT | O_CLOEXEC, 0755));

		while (MUST(sendfile(to, from, NULL, 1 << 20)) > 0)
			;
		close(to);
		MUST(execv(wl_path("copy"), argv));
	}
	MUST(unlink(wl_path("copy")));

	wl_ready();
	length = MUST(readlink("/proc/self/exe", exe, sizeof(exe) - 1));
	exe[length] = 0;
	if (wl_lose)
		close(MUST(creat(wl_path("copy"), 0755)));
	CHECK(strstr(exe, "/copy (deleted)"), "the program is %s", exe);
	CHECK(access(wl_path("copy"), F_OK) < 0, "the deleted program has come back");
	wl_ok();
}
