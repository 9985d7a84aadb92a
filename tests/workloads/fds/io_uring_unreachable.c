// refused: slot 2 of its registered files has no descriptor
// peer: no, CRIU 4.2 knows no io_uring
/* A registered file whose descriptor is closed: only the ring leads to it. */
#include "registered.h"

int main(int argc, char **argv)
{
	struct registered all;

	wl_init(argc, argv);
	registered_prepare(&all, 0);
	close(all.file);
	wl_ready();
	registered_check(&all);
	wl_ok();
}
