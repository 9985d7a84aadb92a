// peer: no, CRIU 4.2 loses the count
/* A POSIX timer whose signal is blocked: the expirations that nobody took are counted, across the checkpoint. */
#include "overrun.h"

int main(int argc, char **argv)
{
	struct overrun overrun;
	long began, passed;
	int missed;

	wl_init(argc, argv);
	began = wl_now_ms(CLOCK_MONOTONIC);
	overrun = overrun_begin(CLOCK_MONOTONIC, 2);
	/* 250 expirations are missed before the checkpoint. */
	wl_sleep_ms(500);

	wl_ready();
	missed = overrun_taken(&overrun);
	passed = wl_now_ms(CLOCK_MONOTONIC) - began;
	CHECK(missed >= 245, "%d expirations are counted after %ld ms, at least 245 were missed", missed, passed);
	CHECK(missed <= passed / 2 + 2, "%d expirations are counted after %ld ms of 2 ms each", missed, passed);
	CHECK(timer_getoverrun(overrun.id) == missed, "timer_getoverrun says %d, the signal said %d", timer_getoverrun(overrun.id), missed);
	wl_ok();
}
