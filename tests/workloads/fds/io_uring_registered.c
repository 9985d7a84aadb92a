// peer: no, CRIU 4.2 knows no io_uring
/* An io_uring with registered files, memory and an eventfd, which any thread may use. */
#include "registered.h"

int main(int argc, char **argv)
{
	struct registered all;

	wl_init(argc, argv);
	registered_prepare(&all, 0);
	wl_ready();
	registered_check(&all);
	wl_ok();
}
