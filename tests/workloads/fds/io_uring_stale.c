// refused: registered buffer 1 is memory that process
// peer: no, CRIU 4.2 knows no io_uring
/* Registered memory that is no longer in the program: the ring has the old pages, others are at their address. */
#include "registered.h"

int main(int argc, char **argv)
{
	struct registered all;

	wl_init(argc, argv);
	registered_prepare(&all, 0);
	MUST(mmap(all.own, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	memset(all.own, 'n', 4096);
	wl_ready();
	CHECK(all.own[0] == 'n', "the new memory is another");
	all.own[0] = 'o';
	registered_check(&all);
	wl_ok();
}
