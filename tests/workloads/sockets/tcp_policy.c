// flags: --tcp keep:127.0.0.2 --tcp close:127.0.0.3 --tcp reset:127.0.0.0/8
// peer: no, CRIU has one policy for all connections
// differs: descriptor socket.*, connections that are not to go on have ended
/* Connections with a process outside of the tree: one is kept, one closed, one reset, by the address of the peer, who is
 * told so if the tree was ended; if it was not, all go on. */
#include <sys/syscall.h>

#include "net.h"

enum { KEPT, CLOSED, RESET, ALL };

/* How a connection stands with the peer: it goes on, or has ended in order or by a reset. */
static char stands(int fd)
{
	char byte;
	ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);

	if (got == 0)
		return 'f';
	return got < 0 && errno == ECONNRESET ? 'r' : 'a';
}

/* Answers over the kept one until that ends: whether the process that was first has ended, and what of the others. */
static void serve(const int *ends, int first)
{
	char byte, answer[ALL] = { 0 };
	struct pollfd gone = { .fd = first, .events = POLLIN };

	while (recv(ends[KEPT], &byte, 1, 0) == 1) {
		answer[KEPT] = poll(&gone, 1, 0) == 1 ? 'e' : 'l';
		for (int i = CLOSED; i < ALL; i++)
			if (answer[i] != 'f' && answer[i] != 'r')
				answer[i] = stands(ends[i]);
		send(ends[KEPT], answer, ALL, MSG_NOSIGNAL);
	}
	_exit(0);
}

/* The harness knows the processes of the workload by their environment. */
static void leave_the_family(void)
{
	for (char **one = environ; *one; one++)
		memset(*one, 0, strlen(*one));
}

static struct sockaddr_in peer(int i)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + i),
	};
}

int main(int argc, char **argv)
{
	int ours[ALL], theirs[ALL], listener, ready[2], first;
	char byte, answer[ALL];

	wl_init(argc, argv);
	first = MUST(syscall(SYS_pidfd_open, getpid(), 0));
	for (int i = 0; i < ALL; i++) {
		struct sockaddr_in address = peer(i);
		socklen_t size = sizeof(address);

		listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(bind(listener, (struct sockaddr *)&address, size));
		MUST(getsockname(listener, (struct sockaddr *)&address, &size));
		MUST(listen(listener, 1));
		ours[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
		MUST(connect(ours[i], (struct sockaddr *)&address, size));
		theirs[i] = MUST(accept(listener, NULL, NULL));
		close(listener);
	}
	MUST(pipe(ready));
	if (MUST(fork()) == 0) {
		/* Its child loses its parent, and with that its place in the tree. */
		if (MUST(fork()) == 0) {
			MUST(setsid());
			leave_the_family();
			for (int i = 0; i < ALL; i++)
				close(ours[i]);
			close(ready[0]);
			MUST(write(ready[1], "x", 1));
			close(ready[1]);
			serve(theirs, first);
		}
		_exit(0);
	}
	MUST(wait(NULL));
	MUST(read(ready[0], &byte, 1));
	close(ready[0]);
	close(ready[1]);
	close(first);
	for (int i = 0; i < ALL; i++)
		close(theirs[i]);

	wl_ready();
	if (wl_lose)
		MUST(shutdown(ours[KEPT], SHUT_RDWR));
	CHECK(send(ours[KEPT], "?", 1, MSG_NOSIGNAL) == 1, "the kept one takes nothing");
	CHECK(recv(ours[KEPT], answer, ALL, MSG_WAITALL) == ALL, "the kept one gives no answer");
	if (answer[KEPT] == 'l') {
		CHECK(answer[CLOSED] == 'a' && answer[RESET] == 'a', "nobody has ended, but to the peer connections have");
		wl_ok();
	}
	CHECK(answer[CLOSED] == 'f', "the peer finds '%c' in the place of an orderly end", answer[CLOSED]);
	CHECK(answer[RESET] == 'r', "the peer finds '%c' in the place of a reset", answer[RESET]);
	for (int i = CLOSED; i < ALL; i++) {
		CHECK(recv(ours[i], &byte, 1, MSG_DONTWAIT) == 0, "connection %d has no end for the program", i);
		CHECK(send(ours[i], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "connection %d takes data", i);
	}
	wl_ok();
}
