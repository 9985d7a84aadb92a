// peer: no, CRIU 4.2 loses it
/* Lines that nobody has read yet and one that is not finished, in canonical mode; the unfinished one can still be edited. */
#include "pair.h"

static void without_echo(struct termios *modes)
{
	modes->c_lflag &= ~ECHO;
}

int main(int argc, char **argv)
{
	struct pair pair;
	char text[64];

	wl_init(argc, argv);
	pair = pair_open(without_echo);
	MUST(write(pair.master, "first\nsecond\nunfinixx", 21));
	wl_sleep_ms(20);

	wl_ready();
	if (wl_lose)
		MUST(read(pair.slave, text, sizeof(text)));
	pair_gives(pair.slave, "the first line", "first\n");
	pair_gives(pair.slave, "the second line", "second\n");
	CHECK(read(pair.slave, text, sizeof(text)) < 0 && errno == EAGAIN, "the unfinished line can be read");
	/* Two erase characters take the last two letters back. */
	MUST(write(pair.master, "\177\177shed\n", 7));
	wl_sleep_ms(20);
	pair_gives(pair.slave, "the edited line", "unfinished\n");
	wl_ok();
}
