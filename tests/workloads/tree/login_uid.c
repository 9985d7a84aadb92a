/* The audit's login uid, which survives every change of user. */
#include "workload.h"

static void uid(char *text, size_t size)
{
	wl_read_file("/proc/self/loginuid", text, size);
}

static void set_uid(const char *text)
{
	int fd = MUST(open("/proc/self/loginuid", O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

int main(int argc, char **argv)
{
	char before[32], now[32];
	pid_t child;

	wl_init(argc, argv);
	if (access("/proc/self/loginuid", F_OK) < 0) {
		/* A kernel without audit has none, and then there must be none afterwards either. */
		wl_ready();
		CHECK(!wl_lose && access("/proc/self/loginuid", F_OK) < 0, "a login uid out of nowhere");
		wl_ok();
	}
	uid(before, sizeof(before));
	child = wl_fork();
	if (child == 0) {
		set_uid("1234");
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			set_uid("1235");
		uid(now, sizeof(now));
		CHECK(strcmp(now, "1234") == 0, "the child's is %s", now);
		_exit(0);
	}
	wl_ready();
	uid(now, sizeof(now));
	CHECK(strcmp(before, now) == 0, "the root's was %s, is %s", before, now);
	wl_join(child);
	wl_ok();
}
