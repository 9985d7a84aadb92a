/* Three thousand descriptors of two hundred files, shared with a child. */
#include "workload.h"

#define FILES 200
#define EACH 15

int main(int argc, char **argv)
{
	static int fds[FILES][EACH];
	char name[32];
	pid_t child;

	wl_init(argc, argv);
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "file%d", i);
		fds[i][0] = MUST(open(wl_path(name), O_RDWR | O_CREAT, 0600));
		MUST(ftruncate(fds[i][0], i + 1));
		for (int j = 1; j < EACH; j++)
			fds[i][j] = j % 2 ? MUST(dup(fds[i][0])) : MUST(open(wl_path(name), O_RDONLY));
		for (int j = 0; j < EACH; j += 2)
			MUST(lseek(fds[i][j], i * 10 + j, SEEK_SET));
	}
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(lseek(fds[FILES - 1][1], 0, SEEK_CUR) == 77777, "the child does not share the last file's position");
		_exit(0);
	}

	wl_ready();
	if (wl_lose)
		MUST(lseek(fds[100][4], 0, SEEK_SET));
	for (int i = 0; i < FILES; i++) {
		for (int j = 0; j < EACH; j++) {
			struct stat status;
			off_t expected = i * 10 + (j % 2 ? 0 : j);

			MUST(fstat(fds[i][j], &status));
			CHECK(status.st_size == i + 1 && lseek(fds[i][j], 0, SEEK_CUR) == expected, "descriptor %d: size %ld, position %ld, should be %d and %ld",
			      fds[i][j], (long)status.st_size, (long)lseek(fds[i][j], 0, SEEK_CUR), i + 1, (long)expected);
		}
	}
	MUST(lseek(fds[FILES - 1][0], 77777, SEEK_SET));
	wl_join(child);
	wl_ok();
}
