/* A program that counts: its counter, its stack and its place in the loop. */
#include "workload.h"

int main(int argc, char **argv)
{
	volatile long counted = 0, other = 0;

	wl_init(argc, argv);
	wl_say("ready\n");
	while (!wl_told_to_go()) {
		counted++;
		wl_sleep_ms(1);
		other++;
	}
	if (wl_lose)
		other = 0;
	CHECK(counted > 0 && other == counted, "two counters of one loop differ: %ld and %ld", counted, other);
	wl_ok();
}
