/* Open files of /proc that belong to a process which is gone, its directory the working directory: all stay dead. */
#include "workload.h"

int main(int argc, char **argv)
{
	char path[64], text[64];
	int status, directory;
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		wl_child_ready();
		pause();
	}
	snprintf(path, sizeof(path), "/proc/%d/status", child);
	status = MUST(open(path, O_RDONLY));
	snprintf(path, sizeof(path), "/proc/%d", child);
	directory = MUST(open(path, O_RDONLY | O_DIRECTORY));
	MUST(chdir(path));
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, NULL, 0));

	wl_ready();
	if (wl_lose)
		MUST(dup2(MUST(open("/proc/self/status", O_RDONLY)), status));
	CHECK(fcntl(status, F_GETFD) >= 0 && fcntl(directory, F_GETFD) >= 0, "a descriptor is gone");
	CHECK(read(status, text, sizeof(text)) < 0 && errno == ESRCH, "the dead process's file can be read");
	CHECK(openat(directory, "status", O_RDONLY) < 0, "the dead process's directory is alive");
	CHECK(getcwd(text, sizeof(text)) == NULL && errno == ENOENT, "the working directory is '%s'", text);
	wl_ok();
}
