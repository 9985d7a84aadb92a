// peer: no, CRIU 4.2 loses what is in the rings, and where they stand
// differs: mapping content*, what an open block holds is handed over a little earlier than its time
// differs: descriptor socket.ready, what an open block holds is handed over a little earlier than its time
/* Rings of TPACKET_V3: one that has gone round, with blocks that were not read and an open one; one for sending beside it;
 * one that holds an open block for long; and one that stands still because nobody has read it. */
#include "packet.h"

#define BLOCKS 4
#define BLOCK 4096
#define RING (BLOCKS * BLOCK)
#define FRAME 1024
/* Frames of sixty bytes that a block takes, or a few more. */
#define FULL 40

struct ring {
	int fd, protocol, turn, left;
	uint8_t *memory;
	struct tpacket3_hdr *next;
	uint64_t number;
	const char *what;
};

static struct tpacket_block_desc *block(struct ring *ring)
{
	return (void *)(ring->memory + ring->turn % BLOCKS * BLOCK);
}

static uint32_t status(struct ring *ring)
{
	return *(volatile uint32_t *)&block(ring)->hdr.bh1.block_status;
}

static void make(struct ring *ring, int protocol, int tov, int both)
{
	struct tpacket_req3 ask = { BLOCK, BLOCKS, FRAME, RING / FRAME, tov, 16, 0 };
	struct tpacket_req3 out = { BLOCK, BLOCKS, FRAME, RING / FRAME, 0, 0, 0 };
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = 1 };

	ring->fd = packet_socket(SOCK_DGRAM, 0);
	ring->protocol = protocol;
	net_set(ring->fd, SOL_PACKET, PACKET_VERSION, TPACKET_V3);
	MUST(setsockopt(ring->fd, SOL_PACKET, PACKET_RX_RING, &ask, sizeof(ask)));
	if (both)
		MUST(setsockopt(ring->fd, SOL_PACKET, PACKET_TX_RING, &out, sizeof(out)));
	ring->memory = mmap(NULL, RING * (both ? 2 : 1), PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, 0);
	CHECK(ring->memory != MAP_FAILED, "mmap: %s", strerror(errno));
	MUST(bind(ring->fd, (struct sockaddr *)&address, sizeof(address)));
}

/* The letter of the next frame; a block of which all were read is given back. 0 if none comes within some time. */
static char next(struct ring *ring, int patience)
{
	struct tpacket_block_desc *of = block(ring);
	char letter;

	if (ring->left == 0) {
		while (!(status(ring) & TP_STATUS_USER)) {
			if (patience-- <= 0)
				return 0;
			wl_sleep_ms(1);
		}
		ring->left = of->hdr.bh1.num_pkts;
		ring->next = (void *)((uint8_t *)of + of->hdr.bh1.offset_to_first_pkt);
		CHECK(of->hdr.bh1.seq_num == ++ring->number, "%s: block %llu comes, should be %lu", ring->what,
		      (unsigned long long)of->hdr.bh1.seq_num, (unsigned long)ring->number);
		CHECK(ring->left > 0, "%s: a block without frames", ring->what);
	}
	letter = ((char *)ring->next)[ring->next->tp_mac];
	CHECK(ring->next->tp_snaplen == 60, "%s: %u bytes of a frame", ring->what, ring->next->tp_snaplen);
	ring->next = (void *)((uint8_t *)ring->next + ring->next->tp_next_offset);
	if (--ring->left == 0) {
		__atomic_store_n(&of->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_SEQ_CST);
		ring->turn++;
	}
	return letter;
}

static void expect(struct ring *ring, char letter)
{
	char got = next(ring, 5000);

	CHECK(got == letter, "%s: '%c' comes, should be '%c'", ring->what, got, letter);
}

/* Sends a frame from the ring behind the one for receiving. */
static void transmit(struct ring *ring, unsigned *at, char letter)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ring->protocol), .sll_ifindex = 1, .sll_halen = 6 };
	struct tpacket3_hdr *frame = (void *)(ring->memory + RING + *at % (RING / FRAME) * FRAME);

	CHECK(frame->tp_status == TP_STATUS_AVAILABLE, "frame %u for sending is not free: %#x", *at, frame->tp_status);
	memset((uint8_t *)frame + TPACKET3_HDRLEN - sizeof(struct sockaddr_ll), letter, 60);
	frame->tp_len = 60;
	frame->tp_next_offset = 0;
	__atomic_store_n(&frame->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_SEQ_CST);
	CHECK(sendto(ring->fd, NULL, 0, 0, (struct sockaddr *)&to, sizeof(to)) >= 0, "sendto: %s", strerror(errno));
	++*at;
}

int main(int argc, char **argv)
{
	struct ring busy = { .what = "a busy ring" }, slow = { .what = "a slow ring" }, still = { .what = "a ring that stands still" };
	unsigned sent = 0;
	int sender, kept = 0;

	wl_init(argc, argv);
	make(&busy, packet_protocol(0), 10, 1);
	make(&slow, packet_protocol(1), 700, 0);
	make(&still, packet_protocol(2), 5, 0);
	sender = packet_socket(SOCK_DGRAM, 0);
	/* Round and round, and then two blocks by time and frames in a third. */
	for (int i = 0; i < 7; i++) {
		packet_send(sender, busy.protocol, 'a' + i);
		transmit(&busy, &sent, 'A' + i);
		expect(&busy, 'a' + i);
		expect(&busy, 'A' + i);
	}
	for (int i = 0; i < 3; i++) {
		packet_send(sender, busy.protocol, '0' + i);
		wl_sleep_ms(i < 2 ? 40 : 0);
	}
	for (int i = 0; i < BLOCKS * FULL + 30; i++)
		packet_send(sender, still.protocol, 'a' + i % 26);
	wl_sleep_ms(30);
	for (int i = 0; i < 3; i++)
		packet_send(sender, slow.protocol, 'x' + i);

	wl_ready();
	if (wl_lose)
		memset(busy.memory + busy.turn % BLOCKS * BLOCK, 0, BLOCK);
	for (int i = 0; i < 3; i++)
		expect(&busy, '0' + i);
	for (int i = 0; i < 3; i++)
		expect(&slow, 'x' + i);
	for (int i = 0; i < 20; i++) {
		packet_send(sender, busy.protocol, 'a' + i);
		transmit(&busy, &sent, 'A' + i);
		expect(&busy, 'a' + i);
		expect(&busy, 'A' + i);
	}
	packet_send(sender, slow.protocol, '!');
	expect(&slow, '!');
	packet_send(sender, still.protocol, '!');
	for (char got; (got = next(&still, 100)); kept++)
		CHECK(got == 'a' + kept % 26, "%s: frame %d is '%c'", still.what, kept, got);
	/* A block is full, or its time was over while the sender did not get the processor. */
	CHECK(kept >= BLOCKS && kept <= BLOCKS * FULL, "%s: %d frames", still.what, kept);
	for (int i = 0; i < 9; i++) {
		packet_send(sender, still.protocol, '0' + i);
		expect(&still, '0' + i);
	}
	wl_ok();
}
