/* For workloads with packet sockets: frames over the loopback device. */
#ifndef PACKET_H
#define PACKET_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/mman.h>

#include "net.h"

/* A protocol of this process alone, of several: others run beside it. */
WL_UNUSED static int packet_protocol(int which)
{
	return 0xa000 + getpid() % 0x800 * 8 + which;
}

/* A packet socket, bound to the loopback device if it has a protocol. */
WL_UNUSED static int packet_socket(int type, int protocol)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(protocol),
		.sll_ifindex = 1,
	};
	int fd = MUST(socket(AF_PACKET, type | SOCK_NONBLOCK, 0));

	if (protocol)
		MUST(bind(fd, (struct sockaddr *)&address, sizeof(address)));
	return fd;
}

/* Sends a frame with one letter, sixty times. */
WL_UNUSED static void packet_send(int fd, int protocol, char letter)
{
	struct sockaddr_ll to = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(protocol),
		.sll_ifindex = 1,
		.sll_halen = 6,
	};
	char frame[60];

	memset(frame, letter, sizeof(frame));
	MUST(sendto(fd, frame, sizeof(frame), 0, (struct sockaddr *)&to, sizeof(to)));
}

/* Waits until something can be read. */
WL_UNUSED static int packet_wait(int fd)
{
	struct pollfd asked = { .fd = fd, .events = POLLIN };

	return MUST(poll(&asked, 1, 5000));
}

#endif
