/* Character devices: null, zero, full, random, each usable on. */
#include "workload.h"

int main(int argc, char **argv)
{
	static const char *const names[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom" };
	struct stat before[5], now;
	int fds[5], node;
	char byte = 'x';

	wl_init(argc, argv);
	for (int i = 0; i < 5; i++) {
		fds[i] = MUST(open(names[i], i == 3 ? O_RDONLY : O_RDWR));
		MUST(fstat(fds[i], &before[i]));
	}
	/* Our own name for a device. */
	MUST(mknod(wl_path("own-zero"), S_IFCHR | 0600, before[1].st_rdev));
	node = MUST(open(wl_path("own-zero"), O_RDWR));

	wl_ready();
	if (wl_lose)
		MUST(dup2(fds[0], fds[1]));
	for (int i = 0; i < 5; i++) {
		MUST(fstat(fds[i], &now));
		CHECK(now.st_rdev == before[i].st_rdev && now.st_ino == before[i].st_ino, "%s has become another device", names[i]);
	}
	CHECK(read(fds[0], &byte, 1) == 0, "/dev/null gives something");
	CHECK(read(fds[1], &byte, 1) == 1 && byte == 0, "/dev/zero does not give zeroes");
	CHECK(write(fds[2], "x", 1) < 0 && errno == ENOSPC, "/dev/full takes something");
	CHECK(read(fds[3], &byte, 1) == 1, "/dev/random gives nothing");
	byte = 'x';
	CHECK(read(node, &byte, 1) == 1 && byte == 0, "our own node of /dev/zero does not give zeroes");
	wl_ok();
}
