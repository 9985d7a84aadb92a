// peer: no, CRIU 4.2 takes the error away and loses the messages
/* Messages about errors that sockets of UDP have not read (IP_RECVERR): one that is connected, one that is not and has been
 * told of several peers, one of which the error was asked for and the message was not read. */
#include <time.h>

#include <linux/errqueue.h>

#include "net.h"

enum { CONNECTED, SEVERAL, ASKED, ALL, PEERS = 3 };

static void no_one(int family, int *port)
{
	int nobody = net_bound(family, SOCK_DGRAM, 0, 0);

	*port = net_port(nobody);
	close(nobody);
}

/* Reads a message about what was sent to a port of the loopback. */
static void expect(int fd, int family, int port, const char *sent)
{
	char data[64] = "", control[512];
	struct sockaddr_storage whither;
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { &whither, sizeof(whither), &part, 1, control, sizeof(control), 0 };
	ssize_t length = recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
	struct cmsghdr *header;
	struct sock_extended_err *error = NULL;

	CHECK(length >= 0, "family %d: no message about port %d: %s", family, port, strerror(errno));
	CHECK(length == (ssize_t)strlen(sent) && memcmp(data, sent, length) == 0, "it is about '%.*s', not '%s'", (int)length, data, sent);
	CHECK(ntohs(((struct sockaddr_in *)&whither)->sin_port) == port, "it is about another port");
	for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
		if ((header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_RECVERR) ||
		    (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_RECVERR))
			error = (struct sock_extended_err *)CMSG_DATA(header);
	CHECK(error && error->ee_errno == ECONNREFUSED, "it is about another error");
	CHECK(error->ee_origin == (family == AF_INET ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6), "it is from elsewhere");
}

int main(int argc, char **argv)
{
	static const int families[2] = { AF_INET, AF_INET6 };
	int sockets[2][ALL], ports[2][ALL][PEERS];
	char text[32];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++) {
		for (int j = 0; j < ALL; j++) {
			sockets[i][j] = net_bound(families[i], SOCK_DGRAM, 0, 0);
			net_set(sockets[i][j], i ? IPPROTO_IPV6 : IPPROTO_IP, i ? IPV6_RECVERR : IP_RECVERR, 1);
			no_one(families[i], &ports[i][j][0]);
		}
		net_connect(sockets[i][CONNECTED], families[i], ports[i][CONNECTED][0]);
		MUST(send(sockets[i][CONNECTED], "connected", 9, 0));
		for (int k = 0; k < PEERS; k++) {
			struct sockaddr_storage address;

			no_one(families[i], &ports[i][SEVERAL][k]);
			address = net_loopback(families[i], ports[i][SEVERAL][k]);
			snprintf(text, sizeof(text), "to the peer %d", k);
			/* An error that waits is told to who sends, and goes with that. */
			net_get(sockets[i][SEVERAL], SOL_SOCKET, SO_ERROR);
			MUST(sendto(sockets[i][SEVERAL], text, strlen(text), 0, (struct sockaddr *)&address, net_size(families[i])));
		}
		net_connect(sockets[i][ASKED], families[i], ports[i][ASKED][0]);
		MUST(send(sockets[i][ASKED], "asked", 5, 0));
		for (int j = 0; j < ALL; j++)
			WAIT_FOR(net_ready(sockets[i][j]) & POLLERR, "no error");
		CHECK(net_get(sockets[i][ASKED], SOL_SOCKET, SO_ERROR) == ECONNREFUSED, "no error to ask for");
	}

	wl_ready();
	for (int i = 0; i < 2; i++) {
		if (wl_lose && i)
			recv(sockets[i][SEVERAL], text, sizeof(text), MSG_ERRQUEUE | MSG_DONTWAIT);
		CHECK(net_get(sockets[i][ASKED], SOL_SOCKET, SO_ERROR) == 0, "%d: the error is told twice", i);
		CHECK(net_get(sockets[i][CONNECTED], SOL_SOCKET, SO_ERROR) == ECONNREFUSED, "%d: the error is gone", i);
		expect(sockets[i][CONNECTED], families[i], ports[i][CONNECTED][0], "connected");
		expect(sockets[i][ASKED], families[i], ports[i][ASKED][0], "asked");
		for (int k = 0; k < PEERS; k++) {
			snprintf(text, sizeof(text), "to the peer %d", k);
			expect(sockets[i][SEVERAL], families[i], ports[i][SEVERAL][k], text);
		}
		for (int j = 0; j < ALL; j++)
			CHECK(recv(sockets[i][j], text, 1, MSG_ERRQUEUE | MSG_DONTWAIT) < 0 && errno == EAGAIN, "%d %d: more messages", i, j);
	}
	wl_ok();
}
