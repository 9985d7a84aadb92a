// peer: no, CRIU 4.2 knows no io_uring
/* Two io_urings that are made in an uncommon way: one waits for completions without sleeping, one was never enabled. */
#include "ring.h"

int main(int argc, char **argv)
{
	struct ring busy, disabled;

	wl_init(argc, argv);
	ring_make(&busy, 8, IORING_SETUP_IOPOLL);
	for (uint64_t tag = 1; tag <= 100; tag++) {
		ring_give(&busy, tag);
		ring_submit(&busy, 1);
		ring_take(&busy, tag, 0);
	}
	ring_make(&disabled, 8, IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER);
	ring_give(&disabled, 7);
	ring_put(&disabled, disabled.params.sq_off.tail, disabled.given);
	wl_ready();
	if (wl_lose)
		MUST(syscall(SYS_io_uring_register, disabled.fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0));
	/* Of files that cannot be polled nothing may be read so. */
	ring_read(&busy, 101, MUST(open("/dev/null", O_RDONLY)), &busy, 1, 0);
	ring_submit(&busy, 1);
	ring_take(&busy, 101, -EOPNOTSUPP);
	ring_give(&busy, 102);
	ring_submit(&busy, 1);
	ring_take(&busy, 102, 0);
	CHECK(syscall(SYS_io_uring_enter, disabled.fd, 1, 0, 0, NULL, 0) == -1 && errno == EBADFD, "the ring has been enabled");
	MUST(syscall(SYS_io_uring_register, disabled.fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0));
	ring_submit(&disabled, 1);
	ring_take(&disabled, 7, 0);
	wl_ok();
}
