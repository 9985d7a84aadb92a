// peer: no, CRIU 4.2 loses what is in the rings, and where they stand
/* Rings of packet sockets, for receiving and sending, with frames that were not read; both ends go on where they were. */
#include "packet.h"

#define PROTOCOL packet_protocol(0)
#define OTHER packet_protocol(1)
#define FRAMES 16
#define FRAME 1024
#define BLOCK 4096
#define RING (FRAMES * FRAME)

/* Offsets of a frame's status and data, by version. */
static uint32_t status(uint8_t *frame)
{
	return *(volatile uint32_t *)frame;
}

static int ring_socket(int protocol, int version, int both, uint8_t **ring)
{
	struct tpacket_req ask = { BLOCK, RING / BLOCK, FRAME, FRAMES };
	int fd = packet_socket(SOCK_DGRAM, 0);
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = 1 };

	net_set(fd, SOL_PACKET, PACKET_VERSION, version);
	MUST(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ask, sizeof(ask)));
	if (both)
		MUST(setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &ask, sizeof(ask)));
	*ring = mmap(NULL, RING * (both ? 2 : 1), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(*ring != MAP_FAILED, "mmap: %s", strerror(errno));
	MUST(bind(fd, (struct sockaddr *)&address, sizeof(address)));
	return fd;
}

/* The next frame has this letter; it is given back. */
static void next(uint8_t *ring, int version, unsigned *at, char letter, const char *what)
{
	uint8_t *frame = ring + *at % FRAMES * FRAME;
	uint16_t mac;

	for (int tries = 0; !(status(frame) & TP_STATUS_USER); tries++) {
		CHECK(tries < 2000, "%s: nothing in frame %u", what, *at % FRAMES);
		usleep(1000);
	}
	mac = *(uint16_t *)(frame + (version == TPACKET_V1 ? 16 : 12));
	CHECK(frame[mac] == (uint8_t)letter && frame[mac + 59] == (uint8_t)letter, "%s: frame %u has %c, not %c", what,
	      *at % FRAMES, frame[mac], letter);
	*(volatile uint32_t *)frame = TP_STATUS_KERNEL;
	++*at;
}

/* Sends a frame from the ring. */
static void transmit(int fd, uint8_t *ring, unsigned *at, int protocol, char letter)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = 1, .sll_halen = 6 };
	struct tpacket2_hdr *frame = (struct tpacket2_hdr *)(ring + *at % FRAMES * FRAME);

	CHECK(frame->tp_status == TP_STATUS_AVAILABLE, "frame %u for sending is not free: %#x", *at % FRAMES, frame->tp_status);
	memset((uint8_t *)frame + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll), letter, 60);
	frame->tp_len = 60;
	__atomic_store_n(&frame->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_SEQ_CST);
	CHECK(sendto(fd, NULL, 0, 0, (struct sockaddr *)&to, sizeof(to)) >= 0, "sendto: %s", strerror(errno));
	++*at;
}

int main(int argc, char **argv)
{
	uint8_t *one, *two;
	unsigned one_at = 0, two_at = 0, sent = 0;
	int second, sender;

	wl_init(argc, argv);
	ring_socket(PROTOCOL, TPACKET_V1, 0, &one);
	second = ring_socket(OTHER, TPACKET_V2, 1, &two);
	sender = packet_socket(SOCK_DGRAM, 0);
	/* More than once round, and three are left. */
	for (int i = 0; i < FRAMES + 5; i++) {
		packet_send(sender, PROTOCOL, 'a' + i);
		next(one, TPACKET_V1, &one_at, 'a' + i, "version 1");
	}
	for (int i = 0; i < 3; i++)
		packet_send(sender, PROTOCOL, '0' + i);
	for (int i = 0; i < 7; i++) {
		transmit(second, two + RING, &sent, OTHER, 'a' + i);
		next(two, TPACKET_V2, &two_at, 'a' + i, "version 2");
	}
	packet_send(sender, OTHER, '8');

	wl_ready();
	if (wl_lose)
		memset(one + 6 * FRAME, 0, FRAME);
	for (int i = 0; i < 3; i++)
		next(one, TPACKET_V1, &one_at, '0' + i, "what was not read");
	next(two, TPACKET_V2, &two_at, '8', "what was not read");
	for (int i = 0; i < 2 * FRAMES; i++) {
		packet_send(sender, PROTOCOL, 'A' + i);
		next(one, TPACKET_V1, &one_at, 'A' + i, "version 1 afterwards");
		transmit(second, two + RING, &sent, OTHER, 'A' + i);
		next(two, TPACKET_V2, &two_at, 'A' + i, "version 2 afterwards");
	}
	wl_ok();
}
