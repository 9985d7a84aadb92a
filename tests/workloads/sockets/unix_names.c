// peer: no, CRIU 4.2 loses the names of accepted sockets and of senders
// differs: descriptor socket.unsent, who sent it and is no more comes back as another
/* Unix sockets with names: files, abstract, relative to a directory, deleted; who listens, who is connected through a
 * name, datagrams to a name. */
#include <sys/stat.h>

#include "unix.h"

static const char *abstract(const char *name)
{
	char made[64];

	snprintf(made, sizeof(made), "@wl-%d-%s", getpid(), name);
	return strdup(made);
}

/* Connects through a name to a socket that listens, which must accept it. */
static void serves(int listener, int type, const char *name, const char *what)
{
	int client = MUST(socket(AF_UNIX, type, 0)), served;

	CHECK(unix_connect(client, name) == 0, "%s does not listen: %s", what, strerror(errno));
	served = MUST(accept(listener, NULL, NULL));
	unix_sends(client, "hello");
	unix_gets(served, "hello", what);
	unix_is_named(served, name, what);
	close(client);
	close(served);
}

int main(int argc, char **argv)
{
	char *path, *packets, *box, *gone_path, *gone_box;
	const char *hidden, *writer_name;
	int listener, of_packets, of_hidden, relative, deleted, lazy, clients[3], served[3], mailbox, abstract_box, to_box,
		to_gone, gone, writer, pair[2], unnamed;
	struct stat before, after;

	wl_init(argc, argv);
	MUST(chdir(wl_dir));
	path = strdup(wl_path("listener"));
	packets = strdup(wl_path("packets"));
	box = strdup(wl_path("box"));
	gone_path = strdup(wl_path("gone"));
	gone_box = strdup(wl_path("gone-box"));
	hidden = abstract("hidden");
	writer_name = abstract("writer");

	listener = unix_bound(SOCK_STREAM, path);
	MUST(chmod(path, 0640));
	MUST(chown(path, 7, 8));
	MUST(listen(listener, 5));
	of_packets = unix_bound(SOCK_SEQPACKET, packets);
	MUST(listen(of_packets, 1));
	of_hidden = unix_bound(SOCK_STREAM, hidden);
	MUST(listen(of_hidden, 3));
	relative = unix_bound(SOCK_STREAM, "./relative");
	MUST(listen(relative, 3));
	deleted = unix_bound(SOCK_STREAM, gone_path);
	MUST(listen(deleted, 3));
	MUST(unlink(gone_path));
	lazy = unix_bound(SOCK_STREAM, abstract("lazy"));

	for (int i = 0; i < 3; i++)
		clients[i] = MUST(socket(AF_UNIX, i == 1 ? SOCK_SEQPACKET : SOCK_STREAM, 0));
	unix_bind(clients[0], "client");
	MUST(unix_connect(clients[0], path));
	served[0] = MUST(accept(listener, NULL, NULL));
	MUST(unix_connect(clients[1], packets));
	served[1] = MUST(accept(of_packets, NULL, NULL));
	MUST(unix_connect(clients[2], hidden));
	served[2] = MUST(accept(of_hidden, NULL, NULL));
	for (int i = 0; i < 3; i++) {
		unix_sends(clients[i], "request");
		if (i < 2)
			unix_sends(served[i], "answer");
	}
	close(clients[2]);

	mailbox = unix_bound(SOCK_DGRAM, box);
	writer = unix_bound(SOCK_DGRAM, writer_name);
	MUST(unix_connect(writer, box));
	unix_sends(writer, "from the writer");
	to_box = unix_bound(SOCK_DGRAM, abstract("passing"));
	MUST(unix_connect(to_box, box));
	unix_sends(to_box, "from one that is gone");
	close(to_box);
	to_box = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(unix_connect(to_box, box));
	unix_sends(to_box, "from nobody");
	abstract_box = unix_bound(SOCK_DGRAM, abstract("box"));
	gone = unix_bound(SOCK_DGRAM, gone_box);
	to_gone = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(unix_connect(to_gone, gone_box));
	unix_sends(to_gone, "to the deleted");
	MUST(unlink(gone_box));
	unix_pair(SOCK_DGRAM, pair);
	unix_bind(pair[0], abstract("pair"));
	unix_sends(pair[0], "in the pair");
	unnamed = unix_bound(SOCK_DGRAM, abstract("orphan"));
	MUST(unix_connect(unnamed, abstract("lost-box")) == -1 ? 0 : -1);

	MUST(stat(path, &before));
	wl_ready();
	if (wl_lose)
		MUST(unlink(path));
	CHECK(stat(path, &after) == 0, "its file is missing");
	CHECK(before.st_mode == after.st_mode && after.st_uid == 7 && after.st_gid == 8, "mode %o, owner %d:%d",
	      after.st_mode, after.st_uid, after.st_gid);
	serves(listener, SOCK_STREAM, path, "a listening socket");
	serves(of_packets, SOCK_SEQPACKET, packets, "one of packets");
	serves(of_hidden, SOCK_STREAM, hidden, "an abstract one");
	serves(relative, SOCK_STREAM, "./relative", "a relative one");
	unix_is_named(deleted, gone_path, "a deleted one");
	CHECK(access(gone_path, F_OK) == -1 && errno == ENOENT, "the deleted one has a file");
	CHECK(access(gone_box, F_OK) == -1 && errno == ENOENT, "the deleted box has a file");
	CHECK(net_get(deleted, SOL_SOCKET, SO_ACCEPTCONN) == 1, "the deleted one does not listen");
	unix_is_named(lazy, abstract("lazy"), "one that does not listen");
	CHECK(net_get(lazy, SOL_SOCKET, SO_ACCEPTCONN) == 0, "it listens");

	unix_is_named(served[0], path, "an accepted one");
	unix_peer_is(clients[0], path, "a client");
	unix_peer_is(served[0], "client", "an accepted one");
	unix_is_named(served[1], packets, "an accepted one of packets");
	unix_is_named(served[2], hidden, "an accepted abstract one");
	for (int i = 0; i < 3; i++)
		unix_gets(served[i], "request", "an accepted one");
	unix_ends(served[2], "one whose client has gone");
	for (int i = 0; i < 2; i++) {
		unix_gets(clients[i], "answer", "a client");
		unix_sends(clients[i], "again");
		unix_gets(served[i], "again", "an accepted one");
	}

	unix_gets_from(mailbox, "from the writer", writer_name, "a box");
	unix_gets_from(mailbox, "from one that is gone", abstract("passing"), "a box");
	unix_gets_from(mailbox, "from nobody", "", "a box");
	unix_sends(writer, "more");
	unix_gets_from(mailbox, "more", writer_name, "a box");
	unix_peer_is(to_box, box, "a sender");
	unix_sends(to_box, "and more");
	unix_gets(mailbox, "and more", "a box");
	MUST(unix_connect(to_box, abstract("box")));
	unix_sends(to_box, "elsewhere");
	unix_gets(abstract_box, "elsewhere", "an abstract box");
	unix_gets(gone, "to the deleted", "a deleted box");
	unix_sends(to_gone, "still");
	unix_gets(gone, "still", "a deleted box");
	unix_gets_from(pair[1], "in the pair", abstract("pair"), "a pair");
	unix_is_named(unnamed, abstract("orphan"), "one that nobody knows");
	wl_ok();
}
