// refused: urgent data (MSG_OOB)
/* Urgent data of a Unix stream that was not read. */
#include "unix.h"

int main(int argc, char **argv)
{
	int ends[2];
	char byte = 0;

	wl_init(argc, argv);
	unix_pair(SOCK_STREAM, ends);
	unix_sends(ends[0], "before");
	/* A kernel may be without it (CONFIG_AF_UNIX_OOB): it then has nothing to refuse. */
	MUST(send(ends[0], "!", 1, MSG_OOB));
	unix_sends(ends[0], "behind");

	wl_ready();
	if (wl_lose)
		MUST(recv(ends[1], &byte, 1, MSG_OOB));
	CHECK(recv(ends[1], &byte, 1, MSG_OOB) == 1 && byte == '!', "the urgent byte is lost");
	unix_gets(ends[1], "before", "a stream");
	unix_gets(ends[1], "behind", "a stream");
	wl_ok();
}
