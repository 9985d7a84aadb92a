/* A memfd that has only the descriptor which made it, and a mapping of that, is not busy: it can be run. */
#include "workload.h"

int main(int argc, char **argv)
{
	static const char script[] = "#!/bin/true";
	static char *const arguments[] = { "run", NULL }, *const environment[] = { NULL };
	uint8_t *map;
	pid_t child;
	int fd;

	wl_init(argc, argv);
	fd = MUST(memfd_create("to be run", 0));
	MUST(write(fd, script, sizeof(script) - 1));
	map = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));

	wl_ready();
	if (wl_lose) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		MUST(open(path, O_RDWR | O_CLOEXEC));
	}
	CHECK(memcmp(map, script, sizeof(script) - 1) == 0, "the mapping shows something else");
	child = MUST(fork());
	if (child == 0) {
		syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
		wl_fail("cannot run it: %s", strerror(errno));
	}
	wl_join(child);
	wl_ok();
}
