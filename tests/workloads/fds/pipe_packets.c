// gap: packet boundaries behind a partly read packet
// peer: no, CRIU 4.2 refuses packet mode
/* A pipe in packet mode (O_DIRECT): each write is read by itself, also what was written before the checkpoint. */
#include "workload.h"

int main(int argc, char **argv)
{
	char text[64] = "";
	int ends[2];

	wl_init(argc, argv);
	MUST(pipe2(ends, O_DIRECT | O_NONBLOCK));
	MUST(write(ends[1], "first", 5));
	MUST(write(ends[1], "second packet", 13));
	MUST(write(ends[1], "3", 1));

	wl_ready();
	if (wl_lose)
		MUST(read(ends[0], text, sizeof(text)));
	CHECK(fcntl(ends[1], F_GETFL) & O_DIRECT, "the packet mode is lost");
	CHECK(read(ends[0], text, sizeof(text)) == 5 && memcmp(text, "first", 5) == 0, "the first packet is '%.13s'", text);
	CHECK(read(ends[0], text, sizeof(text)) == 13 && memcmp(text, "second packet", 13) == 0, "the second packet is '%.13s'", text);
	MUST(write(ends[1], "four", 4));
	CHECK(read(ends[0], text, sizeof(text)) == 1 && text[0] == '3', "the third packet is '%.13s'", text);
	/* A packet that is not read whole is lost for the rest. */
	CHECK(read(ends[0], text, 2) == 2 && read(ends[0], text, 2) < 0 && errno == EAGAIN, "the new packet comes in parts");
	wl_ok();
}
