// peer: no, CRIU 4.2 loses what is urgent about a byte
// differs: descriptor socket.unsent, bytes of a stream that were sent one by one come back in one piece of memory
/* Bytes that were sent out of band through Unix streams: not read, read before what is in front of them, several of them,
 * where they come in line (SO_OOBINLINE), and to a socket that was not accepted yet. */
#include "unix.h"

enum { UNREAD, INLINE, READ, SECOND, FIRST, BARE, COUNT };

static void urgent(int fd, const char *text)
{
	/* A kernel may be without it (CONFIG_AF_UNIX_OOB). */
	CHECK(send(fd, text, strlen(text), MSG_OOB) == (ssize_t)strlen(text), "MSG_OOB: %s", strerror(errno));
}

static void takes_urgent(int fd, char wanted, const char *what)
{
	char byte = 0;

	CHECK(recv(fd, &byte, 1, MSG_OOB | MSG_DONTWAIT) == 1 && byte == wanted, "%s: the urgent byte is lost (%c, %s)", what,
	      byte, strerror(errno));
}

static void is_at_mark(int fd, int wanted, const char *what)
{
	int at = -1;

	MUST(ioctl(fd, SIOCATMARK, &at));
	CHECK(at == wanted, "%s: %s the mark", what, at ? "at" : "not at");
}

static void prior(int fd, bool wanted, const char *what)
{
	CHECK(!!(net_ready(fd) & POLLPRI) == wanted, "%s: poll tells %#x", what, net_ready(fd));
}

int main(int argc, char **argv)
{
	int ends[COUNT][2], listener, client, served;
	char *path;

	wl_init(argc, argv);
	for (int i = 0; i < COUNT; i++)
		unix_pair(SOCK_STREAM, ends[i]);
	unix_sends(ends[UNREAD][0], "before");
	urgent(ends[UNREAD][0], "!");
	unix_sends(ends[UNREAD][0], "behind");
	net_set(ends[INLINE][1], SOL_SOCKET, SO_OOBINLINE, 1);
	unix_sends(ends[INLINE][0], "before");
	urgent(ends[INLINE][0], "more!");
	unix_sends(ends[INLINE][0], "behind");
	unix_sends(ends[READ][0], "before");
	urgent(ends[READ][0], "!");
	takes_urgent(ends[READ][1], '!', "at once");
	unix_sends(ends[READ][0], "behind");
	unix_sends(ends[SECOND][0], "one");
	urgent(ends[SECOND][0], "!");
	takes_urgent(ends[SECOND][1], '!', "at once");
	unix_sends(ends[SECOND][0], "two");
	urgent(ends[SECOND][0], "3");
	unix_sends(ends[SECOND][0], "four");
	urgent(ends[SECOND][0], "5");
	urgent(ends[FIRST][0], "!");
	unix_sends(ends[FIRST][0], "behind");
	urgent(ends[BARE][0], "!");
	takes_urgent(ends[BARE][1], '!', "at once");
	path = strdup(wl_path("listener"));
	listener = unix_bound(SOCK_STREAM, path);
	MUST(listen(listener, 1));
	client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(unix_connect(client, path));
	urgent(client, "wait!");

	wl_ready();
	if (wl_lose)
		takes_urgent(ends[UNREAD][1], '!', "too early");
	prior(ends[UNREAD][1], true, "unread");
	takes_urgent(ends[UNREAD][1], '!', "unread");
	unix_gets(ends[UNREAD][1], "before", "unread");
	is_at_mark(ends[UNREAD][1], 1, "unread");
	unix_gets(ends[UNREAD][1], "behind", "unread");
	is_at_mark(ends[UNREAD][1], 0, "unread");

	prior(ends[INLINE][1], true, "in line");
	unix_gets(ends[INLINE][1], "beforemore", "in line");
	is_at_mark(ends[INLINE][1], 1, "in line");
	unix_gets(ends[INLINE][1], "!behind", "in line");

	prior(ends[READ][1], false, "read");
	unix_gets(ends[READ][1], "before", "read");
	is_at_mark(ends[READ][1], 1, "read");
	unix_gets(ends[READ][1], "behind", "read");

	/* As long as another is unread, marks are passed over. */
	takes_urgent(ends[SECOND][1], '5', "the second");
	unix_gets(ends[SECOND][1], "one", "the second");
	is_at_mark(ends[SECOND][1], 1, "the second");
	unix_gets(ends[SECOND][1], "two3four", "the second");
	is_at_mark(ends[SECOND][1], 1, "the second");

	prior(ends[FIRST][1], true, "the first");
	is_at_mark(ends[FIRST][1], 1, "the first");
	takes_urgent(ends[FIRST][1], '!', "the first");
	unix_gets(ends[FIRST][1], "behind", "the first");

	is_at_mark(ends[BARE][1], 1, "nothing else");
	unix_is_empty(ends[BARE][1], "nothing else");

	served = MUST(accept(listener, NULL, NULL));
	takes_urgent(served, '!', "one that waits");
	unix_gets(served, "wait", "one that waits");
	wl_ok();
}
