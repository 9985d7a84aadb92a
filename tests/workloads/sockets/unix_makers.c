// peer: no, CRIU 4.2 has all connections made by whom it likes
/* Whom Unix sockets tell as their peers (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD): processes that are there, with the ids
 * that they had, and such that are no more; and credentials of senders that are no more (SCM_CREDENTIALS). */
#include <grp.h>

#include "unix.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static void told(int fd, pid_t pid, uid_t uid, gid_t gid, const char *what)
{
	struct ucred who;
	socklen_t size = sizeof(who);

	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size));
	CHECK(who.pid == pid && who.uid == uid && who.gid == gid, "%s: peer is %d %d:%d, should be %d %d:%d", what, who.pid,
	      who.uid, who.gid, pid, uid, gid);
}

static void groups(int fd, int count, const gid_t *wanted, const char *what)
{
	gid_t got[16];
	socklen_t size = sizeof(got);

	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, got, &size));
	CHECK(size == count * sizeof(gid_t) && memcmp(got, wanted, size) == 0, "%s: has other groups", what);
}

/* The process that is behind a socket is alive. */
static void lives(int fd, pid_t pid, const char *what)
{
	char line[64] = "", path[64], wanted[32];
	int held;
	socklen_t size = sizeof(held);
	FILE *info;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &held, &size) < 0)
		return;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", held);
	snprintf(wanted, sizeof(wanted), "Pid:\t%d\n", pid);
	info = fopen(path, "r");
	while (info && fgets(line, sizeof(line), info) && strncmp(line, "Pid:", 4) != 0)
		;
	CHECK(strcmp(line, wanted) == 0, "%s: another process, '%s'", what, line);
	fclose(info);
	close(held);
}

/* Becomes another for the moment of some calls. */
static void as_another(uid_t uid, gid_t gid)
{
	MUST(syscall(SYS_setresgid, -1, gid, -1));
	MUST(syscall(SYS_setresuid, -1, uid, -1));
}

static void as_root(void)
{
	MUST(syscall(SYS_setresuid, -1, 0, -1));
	MUST(syscall(SYS_setresgid, -1, 0, -1));
}

int main(int argc, char **argv)
{
	static const gid_t of_child[] = { 11, 22, 33 };
	int own[2], gone[3][2], listener, served, client, ready[2], waiting, late, box[2], lasting, child_end;
	pid_t child, ended[2];
	char hall[64], theirs[64], text[16], *path, control[CMSG_SPACE(sizeof(struct ucred))];
	struct iovec iov = { text, sizeof(text) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct ucred who;

	wl_init(argc, argv);
	snprintf(hall, sizeof(hall), "@wl-%d-hall", getpid());
	snprintf(theirs, sizeof(theirs), "@wl-%d-theirs", getpid());
	path = strdup(wl_path("listener"));
	MUST(chmod(wl_dir, 0755));
	as_another(1001, 1002);
	unix_pair(SOCK_DGRAM, own);
	as_root();
	MUST(setgroups(0, NULL));

	/* Made by processes that end. */
	for (int i = 0; i < 3; i++) {
		MUST(pipe(ready));
		unix_pair(SOCK_STREAM, gone[i]);
		ended[i % 2] = MUST(fork());
		if (ended[i % 2] == 0) {
			int ends[2];

			MUST(setgroups(3, of_child));
			as_another(2000 + i, 3000 + i);
			unix_pair(i == 1 ? SOCK_SEQPACKET : SOCK_STREAM, ends);
			as_root();
			unix_gives(gone[i][0], "x", ends, 2, false);
			_exit(0);
		}
		wl_join(ended[i % 2]);
		unix_takes(gone[i][1], 1, "x", gone[i], 2, "the parent");
		close(ready[0]);
		close(ready[1]);
	}

	/* By a child that stays: it connects to us, listens, and keeps a pair whose other end is ours. */
	listener = unix_bound(SOCK_STREAM, path);
	MUST(listen(listener, 5));
	MUST(chmod(path, 0666));
	MUST(pipe(ready));
	unix_pair(SOCK_DGRAM, box);
	net_set(box[1], SOL_SOCKET, SO_PASSCRED, 1);
	child = MUST(fork());
	if (child == 0) {
		int ends[2], room, late_one;

		unix_pair(SOCK_STREAM, ends);
		unix_gives(box[0], "end", &ends[1], 1, false);
		MUST(setgroups(3, of_child));
		as_another(1234, 2345);
		client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(unix_connect(client, path));
		late_one = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		MUST(unix_connect(late_one, path));
		room = unix_bound(SOCK_STREAM, theirs);
		MUST(listen(room, 1));
		as_root();
		MUST(write(ready[1], "x", 1));
		wl_wait();
		told(client, getppid(), 0, 0, "the client");
		told(ends[0], getpid(), 0, 0, "the child's pair");
		told(room, getpid(), 1234, 2345, "the child's listener");
		unix_sends(client, "hello");
		wl_wait();
		while (recv(ends[0], text, 1, 0) != 0)
			;
		_exit(0);
	}
	MUST(read(ready[0], text, 1));
	unix_takes(box[1], 3, "end", &child_end, 1, "the parent");
	served = MUST(accept(listener, NULL, NULL));
	lasting = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(unix_connect(lasting, theirs));

	/* A message of one that ends. */
	ended[0] = MUST(fork());
	if (ended[0] == 0) {
		unix_sends(box[0], "farewell");
		_exit(0);
	}
	wl_join(ended[0]);

	wl_ready();
	if (wl_lose) {
		close(own[0]);
		unix_pair(SOCK_DGRAM, own);
	}
	told(own[0], getpid(), 1001, 1002, "an own pair");
	told(own[1], getpid(), 1001, 1002, "an own pair");
	lives(own[1], getpid(), "an own pair");
	for (int i = 0; i < 3; i++) {
		struct ucred of;
		socklen_t size = sizeof(of);

		MUST(getsockopt(gone[i][0], SOL_SOCKET, SO_PEERCRED, &of, &size));
		told(gone[i][0], of.pid, 2000 + i, 3000 + i, "a pair of one that has ended");
		told(gone[i][1], of.pid, 2000 + i, 3000 + i, "a pair of one that has ended");
		CHECK(of.pid != getpid() && of.pid != child, "a pair of one that has ended is of %d", of.pid);
		groups(gone[i][0], 3, of_child, "a pair of one that has ended");
	}
	told(served, child, 1234, 2345, "an accepted one");
	groups(served, 3, of_child, "an accepted one");
	lives(served, child, "an accepted one");
	told(listener, getpid(), 0, 0, "one that listens");
	told(lasting, child, 1234, 2345, "a client of the child");
	told(child_end, child, 0, 0, "an end of the child's pair");
	lives(child_end, child, "an end of the child's pair");
	waiting = MUST(accept(listener, NULL, NULL));
	told(waiting, child, 1234, 2345, "one that waited");
	groups(waiting, 3, of_child, "one that waited");
	late = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(unix_connect(late, path));
	told(late, getpid(), 0, 0, "a new client");

	CHECK(recvmsg(box[1], &message, MSG_DONTWAIT) == 8 && memcmp(text, "farewell", 8) == 0, "the last message is lost");
	memcpy(&who, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(who));
	CHECK(who.pid == ended[0], "the last message is of %d, should be of %d", who.pid, ended[0]);
	WAIT_FOR(net_ready(served) & POLLIN, "the child says nothing");
	unix_gets(served, "hello", "an accepted one");
	close(child_end);
	wl_join(child);
	wl_ok();
}
