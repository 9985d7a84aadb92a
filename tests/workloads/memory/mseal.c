// peer: no, CRIU 4.2 does not carry the seal
/* Memory sealed by mseal(2), Linux 6.10: it can be neither unmapped nor remapped nor given other rights. */
#include "workload.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

int main(int argc, char **argv)
{
	uint8_t *sealed, *open;

	wl_init(argc, argv);
	sealed = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	open = MUST(mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(sealed, 4 * 4096, 1);
	MUST(mprotect(sealed, 4096, PROT_READ));
	MUST(syscall(SYS_mseal, sealed, 4 * 4096, 0));

	wl_ready();
	if (wl_lose)
		sealed = open;
	CHECK(wl_differs(sealed, 4 * 4096, 1) < 0, "contents differ");
	CHECK(munmap(sealed, 4096) < 0 && errno == EPERM, "sealed memory can be unmapped");
	CHECK(mprotect(sealed + 4096, 4096, PROT_NONE) < 0 && errno == EPERM, "sealed memory can be protected anew");
	CHECK(mprotect(open, 4096, PROT_NONE) == 0, "memory that was not sealed cannot be protected anew");
	wl_ok();
}
