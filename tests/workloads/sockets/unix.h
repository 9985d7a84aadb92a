/* For workloads with Unix sockets. */
#ifndef UNIX_H
#define UNIX_H

#include <stddef.h>
#include <sys/un.h>

#include "net.h"

WL_UNUSED static void unix_pair(int type, int ends[2])
{
	MUST(socketpair(AF_UNIX, type, 0, ends));
}

/* An address: of a path, or abstract if the name begins with '@'. */
WL_UNUSED static socklen_t unix_address(struct sockaddr_un *address, const char *name)
{
	size_t length = strlen(name);

	CHECK(length < sizeof(address->sun_path), "the name '%s' is too long", name);
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, name, length);
	if (name[0] != '@')
		return offsetof(struct sockaddr_un, sun_path) + length + 1;
	address->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + length;
}

WL_UNUSED static void unix_bind(int fd, const char *name)
{
	struct sockaddr_un address;
	socklen_t size = unix_address(&address, name);

	MUST(bind(fd, (struct sockaddr *)&address, size));
}

WL_UNUSED static int unix_bound(int type, const char *name)
{
	int fd = MUST(socket(AF_UNIX, type, 0));

	unix_bind(fd, name);
	return fd;
}

WL_UNUSED static int unix_connect(int fd, const char *name)
{
	struct sockaddr_un address;
	socklen_t size = unix_address(&address, name);

	return connect(fd, (struct sockaddr *)&address, size);
}

/* The name of an address, as unix_address takes it. */
WL_UNUSED static const char *unix_shown(const struct sockaddr_un *address, socklen_t size)
{
	static char name[sizeof(*address)];
	size_t length = size - offsetof(struct sockaddr_un, sun_path);

	if (size <= offsetof(struct sockaddr_un, sun_path))
		return "";
	memcpy(name, address->sun_path, length);
	name[length] = 0;
	if (name[0] == 0)
		name[0] = '@';
	return name;
}

WL_UNUSED static void unix_is_named(int fd, const char *name, const char *what)
{
	struct sockaddr_un address;
	socklen_t size = sizeof(address);

	MUST(getsockname(fd, (struct sockaddr *)&address, &size));
	CHECK(strcmp(unix_shown(&address, size), name) == 0, "%s is named '%s', should be '%s'", what,
	      unix_shown(&address, size), name);
}

WL_UNUSED static void unix_peer_is(int fd, const char *name, const char *what)
{
	struct sockaddr_un address;
	socklen_t size = sizeof(address);

	CHECK(getpeername(fd, (struct sockaddr *)&address, &size) == 0, "%s has no peer: %s", what, strerror(errno));
	CHECK(strcmp(unix_shown(&address, size), name) == 0, "the peer of %s is '%s', should be '%s'", what,
	      unix_shown(&address, size), name);
}

WL_UNUSED static void unix_sends(int fd, const char *text)
{
	ssize_t sent = send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);

	CHECK(sent == (ssize_t)strlen(text), "'%s' cannot be sent: %s", text, sent < 0 ? strerror(errno) : "too long");
}

/* One message comes, from who has this name (if it is asked). */
WL_UNUSED static void unix_gets_from(int fd, const char *text, const char *from, const char *what)
{
	struct sockaddr_un address;
	socklen_t size = sizeof(address);
	char got[256] = "";
	ssize_t came = recvfrom(fd, got, sizeof(got) - 1, MSG_DONTWAIT, (struct sockaddr *)&address, &size);

	CHECK(came == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s gets '%s' (%zd, %s), should be '%s'", what, got,
	      came, came < 0 ? strerror(errno) : "", text);
	CHECK(!from || strcmp(unix_shown(&address, size), from) == 0, "%s gets '%s' from '%s', should be from '%s'", what,
	      text, unix_shown(&address, size), from);
}

WL_UNUSED static void unix_gets(int fd, const char *text, const char *what)
{
	unix_gets_from(fd, text, NULL, what);
}

WL_UNUSED static void unix_is_empty(int fd, const char *what)
{
	char byte;

	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "%s has more to read", what);
}

WL_UNUSED static void unix_ends(int fd, const char *what)
{
	char byte;
	ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);

	CHECK(got == 0, "%s does not end: %zd, %s", what, got, strerror(errno));
}

/* Sends descriptors and forgets them, but for those that are kept. */
WL_UNUSED static void unix_gives(int through, const char *text, const int *files, int count, bool keep)
{
	char control[CMSG_SPACE(16 * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)text, strlen(text) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control };
	struct cmsghdr *header;

	message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), files, count * sizeof(int));
	CHECK(sendmsg(through, &message, 0) == (ssize_t)strlen(text), "'%s' cannot be sent: %s", text, strerror(errno));
	for (int i = 0; i < count && !keep; i++)
		close(files[i]);
}

/* Receives at most ROOM bytes, which must be TEXT and bring so many descriptors. */
WL_UNUSED static void unix_takes(int from, size_t room, const char *text, int *files, int count, const char *what)
{
	char got[64] = "", control[CMSG_SPACE(16 * sizeof(int))];
	struct iovec iov = { got, room };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	ssize_t came = recvmsg(from, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *header;
	int number = 0;

	CHECK(came == (ssize_t)strlen(text) && strcmp(got, text) == 0, "%s gets '%s' (%zd, %s), should be '%s'", what, got, came,
	      came < 0 ? strerror(errno) : "", text);
	for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_type != SCM_RIGHTS)
			continue;
		number = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		CHECK(number <= count, "%s gets %d descriptors with '%s', should be %d", what, number, text, count);
		memcpy(files, CMSG_DATA(header), number * sizeof(int));
	}
	CHECK(number == count, "%s gets %d descriptors with '%s', should be %d", what, number, text, count);
}

#endif
