// differs: mapping content.*, frames in use have bytes that nobody ever wrote, and the stack is nearly full: a visit leaves its traces right below them
/* A deep stack: every frame keeps its data and its way back. */
#include "workload.h"

#define DEPTH 300

static __attribute__((noinline)) int descend(int depth)
{
	uint8_t frame[8000];
	int below = 0;

	wl_fill(frame, sizeof(frame), depth);
	if (depth < DEPTH) {
		below = descend(depth + 1);
	} else {
		wl_ready();
		if (wl_lose)
			frame[17] ^= 1;
	}
	CHECK(wl_differs(frame, sizeof(frame), depth) < 0, "frame %d differs at %zd", depth, wl_differs(frame, sizeof(frame), depth));
	return below + 1;
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	CHECK(descend(1) == DEPTH, "frames are missing");
	CHECK(strstr(wl_mapping(&argc, NULL), "[stack]"), "the stack is called '%s'", wl_mapping(&argc, NULL));
	wl_ok();
}
