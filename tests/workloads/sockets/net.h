/* For workloads with sockets: a network of their own, and short ways to make and ask sockets. */
#ifndef NET_H
#define NET_H

#include <arpa/inet.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "workload.h"

/* 127.0.0.1:port or [::1]:port. */
WL_UNUSED static struct sockaddr_storage net_loopback(int family, int port)
{
	struct sockaddr_storage address = { .ss_family = family };

	if (family == AF_INET) {
		((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		((struct sockaddr_in *)&address)->sin_port = htons(port);
	} else {
		((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
		((struct sockaddr_in6 *)&address)->sin6_port = htons(port);
	}
	return address;
}

WL_UNUSED static socklen_t net_size(int family)
{
	return family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

/* The port of a socket, or of its peer. */
WL_UNUSED static int net_port(int fd)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);

	MUST(getsockname(fd, (struct sockaddr *)&address, &size));
	return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

WL_UNUSED static int net_peer_port(int fd)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);

	if (getpeername(fd, (struct sockaddr *)&address, &size) < 0)
		return -1;
	return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

/* A socket bound to the loopback address, at a port that the kernel chooses if it is 0. */
WL_UNUSED static int net_bound(int family, int type, int protocol, int port)
{
	int fd = MUST(socket(family, type, protocol));
	struct sockaddr_storage address = net_loopback(family, port);

	MUST(bind(fd, (struct sockaddr *)&address, net_size(family)));
	return fd;
}

WL_UNUSED static void net_connect(int fd, int family, int port)
{
	struct sockaddr_storage address = net_loopback(family, port);

	MUST(connect(fd, (struct sockaddr *)&address, net_size(family)));
}

/* Begins to connect a socket that does not block, with nobody there yet to answer. */
WL_UNUSED static void net_begin(int fd, int family, int port)
{
	struct sockaddr_storage address = net_loopback(family, port);

	CHECK(connect(fd, (struct sockaddr *)&address, net_size(family)) < 0 && errno == EINPROGRESS, "connect: %s",
	      strerror(errno));
}

/* A socket that listens for one connection, which is there: further ones have to wait. */
WL_UNUSED static int net_full(int family, int *filler)
{
	int listener = net_bound(family, SOCK_STREAM, 0, 0);

	MUST(listen(listener, 0));
	*filler = MUST(socket(family, SOCK_STREAM, 0));
	net_connect(*filler, family, net_port(listener));
	return listener;
}

WL_UNUSED static void net_set(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)) < 0)
		wl_fail("setsockopt %d %d to %d: %s", level, option, value, strerror(errno));
}

WL_UNUSED static int net_get(int fd, int level, int option)
{
	int value = 0;
	socklen_t size = sizeof(value);

	if (getsockopt(fd, level, option, &value, &size) < 0)
		return -errno;
	return value;
}

/* What poll tells now. */
WL_UNUSED static int net_ready(int fd)
{
	struct pollfd asked = { .fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP | POLLPRI };

	MUST(poll(&asked, 1, 0));
	return asked.revents;
}

/* Sends a line over a new connection to a listening socket, which must accept it. */
WL_UNUSED static void net_serves(int listener, int family, const char *what)
{
	int client = MUST(socket(family, SOCK_STREAM, 0)), served;
	struct sockaddr_storage address = net_loopback(family, net_port(listener));
	char got[8] = "";

	CHECK(connect(client, (struct sockaddr *)&address, net_size(family)) == 0, "%s does not listen: %s", what,
	      strerror(errno));
	served = accept(listener, NULL, NULL);
	CHECK(served >= 0, "%s does not accept: %s", what, strerror(errno));
	MUST(send(client, "hello", 5, 0));
	CHECK(recv(served, got, sizeof(got), 0) == 5 && strcmp(got, "hello") == 0, "%s gets '%s'", what, got);
	close(client);
	close(served);
}

/* Both ends of a connection to a listening socket. */
WL_UNUSED static void net_pair(int listener, int family, int ends[2])
{
	ends[0] = MUST(socket(family, SOCK_STREAM, 0));
	net_connect(ends[0], family, net_port(listener));
	ends[1] = MUST(accept(listener, NULL, NULL));
}

/* TCP_ESTABLISHED and so on. */
WL_UNUSED static int net_state(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);

	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size));
	return info.tcpi_state;
}

/* Sends the pattern of a seed until nothing more fits, of which `from` bytes were sent; how much was sent in all. */
WL_UNUSED static size_t net_stuff(int fd, unsigned seed, size_t from)
{
	uint8_t bytes[4096];
	ssize_t sent;

	do {
		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = wl_byte(seed, from + i);
		sent = send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent > 0)
			from += sent;
	} while (sent > 0);
	CHECK(errno == EAGAIN, "send: %s", strerror(errno));
	return from;
}

/* Receives exactly the bytes of the pattern from `from` up to `until`. */
WL_UNUSED static void net_expect(int fd, unsigned seed, size_t from, size_t until, const char *what)
{
	uint8_t bytes[4096];

	while (from < until) {
		size_t want = until - from < sizeof(bytes) ? until - from : sizeof(bytes);
		ssize_t got = recv(fd, bytes, want, 0);

		CHECK(got > 0, "%s: %s after %zu of %zu bytes", what, got ? strerror(errno) : "it ends", from, until);
		for (ssize_t i = 0; i < got; i++, from++)
			CHECK(bytes[i] == wl_byte(seed, from), "%s: byte %zu is another", what, from);
	}
}

#endif
