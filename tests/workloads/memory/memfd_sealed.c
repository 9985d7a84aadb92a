/* Sealed memfds: each set of seals, and what they forbid. */
#include "workload.h"

static const int seals[] = {
	0,
	F_SEAL_SHRINK,
	F_SEAL_GROW | F_SEAL_SHRINK,
	F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK,
	F_SEAL_FUTURE_WRITE,
	F_SEAL_SEAL,
	F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE,
};
#define COUNT ((int)(sizeof(seals) / sizeof(seals[0])))

int main(int argc, char **argv)
{
	uint8_t content[5000], *future = NULL;
	int fds[COUNT], unsealable;

	wl_init(argc, argv);
	for (int i = 0; i < COUNT; i++) {
		fds[i] = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
		wl_fill(content, sizeof(content), i);
		MUST(write(fds[i], content, sizeof(content)));
		if (i == 4)
			/* Made before the seal, this mapping stays writable. */
			future = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0));
		MUST(fcntl(fds[i], F_ADD_SEALS, seals[i]));
	}
	unsealable = MUST(memfd_create("unsealable", 0));

	wl_ready();
	if (wl_lose)
		MUST(fcntl(fds[1], F_ADD_SEALS, F_SEAL_GROW));
	for (int i = 0; i < COUNT; i++) {
		int now = MUST(fcntl(fds[i], F_GET_SEALS));

		CHECK(now == seals[i], "seals of memfd %d were %#x, are %#x", i, seals[i], now);
		MUST(pread(fds[i], content, sizeof(content), 0));
		CHECK(wl_differs(content, sizeof(content), i) < 0, "contents of memfd %d differ", i);
	}
	CHECK(ftruncate(fds[1], 10) < 0 && errno == EPERM, "a memfd sealed against it can be shrunk");
	CHECK(pwrite(fds[3], "x", 1, 0) < 0 && errno == EPERM, "a sealed memfd can be written");
	future[0] = 42;
	MUST(pread(fds[4], content, 1, 0));
	CHECK(content[0] == 42, "the mapping older than the seal is cut off from its memfd");
	CHECK(fcntl(unsealable, F_GET_SEALS) == F_SEAL_SEAL, "a memfd without sealing has seals %#x", fcntl(unsealable, F_GET_SEALS));
	wl_ok();
}
