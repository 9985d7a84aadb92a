// checkpoint-flags: --ext-unix-sk
// peer: no, CRIU wants the flag at both ends
// differs: descriptor socket.unix, the stream's peer has gone for it
// differs: descriptor socket.ready, the stream's peer has gone for it
/* Peers outside of the tree, which the user allows: a datagram socket finds its peer again by name, a stream ends. */
#include "unix.h"

int main(int argc, char **argv)
{
	int ends[2], ready[2], writer;
	char name[64], byte;
	pid_t helper;

	wl_init(argc, argv);
	snprintf(name, sizeof(name), "@wl-%d-outside", getpid());
	unix_pair(SOCK_STREAM, ends);
	MUST(pipe(ready));
	if (MUST(fork()) == 0) {
		/* Its child loses its parent, and with that its place in the tree. */
		if (MUST(fork()) == 0) {
			struct timeval limit = { .tv_sec = 120 };
			int box;

			MUST(setsid());
			close(ends[0]);
			close(ready[0]);
			/* By its environment the harness would know it, and end it. */
			for (char **variable = environ; *variable; variable++)
				memset(*variable, 0, strlen(*variable));
			box = unix_bound(SOCK_DGRAM, name);
			/* A workload that failed must not leave it behind. */
			MUST(setsockopt(box, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
			helper = getpid();
			MUST(write(ready[1], &helper, sizeof(helper)));
			close(ready[1]);
			/* What comes by name is noted in a file; an empty message ends it. */
			while (recv(box, &byte, 1, 0) == 1) {
				int fd = MUST(open(wl_path("came"), O_WRONLY | O_CREAT | O_APPEND, 0600));

				MUST(write(fd, &byte, 1));
				close(fd);
			}
			_exit(0);
		}
		_exit(0);
	}
	MUST(wait(NULL));
	MUST(read(ready[0], &helper, sizeof(helper)));
	close(ready[0]);
	close(ready[1]);
	close(ends[1]);
	writer = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(unix_connect(writer, name));

	wl_ready();
	if (wl_lose)
		MUST(kill(helper, SIGKILL));
	if (wl_lose)
		wl_sleep_ms(50);
	CHECK(send(writer, "z", 1, MSG_NOSIGNAL) == 1, "the peer is not found again: %s", strerror(errno));
	WAIT_FOR(access(wl_path("came"), F_OK) == 0, "nothing comes");
	MUST(send(writer, "", 0, MSG_NOSIGNAL));
	unix_peer_is(writer, name, "the writer");
	wl_ok();
}
