// peer: no, CRIU 4.2 loses the credentials of messages
// differs: descriptor socket.unsent, bytes of a stream that were sent one by one come back in one piece of memory
/* Pairs of Unix sockets with what was not read: its order, the boundaries of messages, who sent it. */
#include "unix.h"

static void gets_with_credentials(int fd, const char *text, pid_t pid, const char *what)
{
	char got[32] = "", control[CMSG_SPACE(sizeof(struct ucred))];
	struct iovec iov = { got, sizeof(got) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	struct ucred who;

	CHECK(recvmsg(fd, &message, MSG_DONTWAIT) == (ssize_t)strlen(text), "%s: %s", what, strerror(errno));
	CHECK(strcmp(got, text) == 0, "%s gets '%s'", what, got);
	header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == SCM_CREDENTIALS, "%s: no credentials", what);
	memcpy(&who, CMSG_DATA(header), sizeof(who));
	CHECK(who.pid == pid, "%s: from %d, should be %d", what, who.pid, pid);
}

int main(int argc, char **argv)
{
	static const int types[] = { SOCK_DGRAM, SOCK_SEQPACKET };
	int stream[2], messages[2][2], left[3], far, full[2], large[2], known[2][2], shut[2], off[2], lone[2];
	static char bytes[150000], again[150000];
	size_t stuffed, back;
	int waiting = 0;
	pid_t child;
	char byte;

	wl_init(argc, argv);
	wl_fill(bytes, sizeof(bytes), 9);
	unix_pair(SOCK_STREAM, stream);
	unix_sends(stream[0], "hello ");
	unix_sends(stream[0], "world");
	unix_sends(stream[1], "back");
	for (int i = 0; i < 2; i++) {
		unix_pair(types[i], messages[i]);
		unix_sends(messages[i][0], "first");
		MUST(send(messages[i][0], "", 0, 0));
		unix_sends(messages[i][0], "third");
		MUST(recv(messages[i][1], &byte, 1, MSG_PEEK));
	}
	unix_pair(SOCK_DGRAM, lone);
	close(lone[1]);
	unix_pair(SOCK_DGRAM, large);
	MUST(send(large[0], bytes, sizeof(bytes), 0));
	unix_pair(SOCK_STREAM, full);
	stuffed = net_stuff(full[0], 3, 0);
	back = net_stuff(full[1], 4, 0);
	for (int i = 0; i < 3; i++) {
		int ends[2];

		unix_pair(i == 0 ? SOCK_STREAM : types[i - 1], ends);
		left[i] = ends[0];
		far = ends[1];
		unix_sends(far, "farewell");
		close(far);
	}
	unix_pair(SOCK_STREAM, shut);
	unix_sends(shut[0], "last");
	MUST(shutdown(shut[0], SHUT_WR));
	unix_pair(SOCK_STREAM, off);
	net_set(off[1], SOL_SOCKET, SO_PEEK_OFF, 0);
	unix_sends(off[0], "looked at");
	MUST(recv(off[1], again, 3, MSG_PEEK));
	for (int i = 0; i < 2; i++) {
		unix_pair(i ? SOCK_STREAM : SOCK_DGRAM, known[i]);
		net_set(known[i][1], SOL_SOCKET, SO_PASSCRED, 1);
		unix_sends(known[i][0], "parent");
	}
	child = MUST(fork());
	if (child == 0) {
		unix_sends(known[0][0], "child");
		unix_sends(known[1][0], "child");
		wl_wait();
		_exit(0);
	}
	WAIT_FOR(ioctl(known[1][1], FIONREAD, &waiting) == 0 && waiting == 11, "the child sends");

	wl_ready();
	if (wl_lose)
		MUST(recv(messages[1][1], &byte, 1, 0));
	unix_gets(stream[1], "hello world", "a stream");
	unix_gets(stream[0], "back", "a stream");
	for (int i = 0; i < 2; i++) {
		unix_gets(messages[i][1], "first", "messages");
		unix_gets(messages[i][1], "", "messages");
		unix_gets(messages[i][1], "third", "messages");
		unix_is_empty(messages[i][1], "messages");
	}
	CHECK(recv(large[1], again, sizeof(again), MSG_DONTWAIT) == sizeof(again), "a large message");
	CHECK(wl_differs(again, sizeof(again), 9) == -1, "a large message is another");
	net_expect(full[1], 3, 0, stuffed, "a full stream");
	net_expect(full[0], 4, 0, back, "a full stream");
	for (int i = 0; i < 3; i++)
		unix_gets(left[i], "farewell", "one that is left");
	unix_ends(left[0], "a stream that is left");
	unix_ends(left[2], "packets that are left");
	CHECK(send(left[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "gone: %s", strerror(errno));
	CHECK(send(lone[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED, "gone: %s", strerror(errno));
	unix_gets(shut[1], "last", "a shut stream");
	unix_ends(shut[1], "a shut stream");
	CHECK(recv(off[1], again, 32, MSG_PEEK) == 6 && memcmp(again, "ked at", 6) == 0, "SO_PEEK_OFF");
	for (int i = 0; i < 2; i++) {
		gets_with_credentials(known[i][1], "parent", getpid(), "known senders");
		gets_with_credentials(known[i][1], "child", child, "known senders");
	}
	wl_join(child);
	wl_ok();
}
