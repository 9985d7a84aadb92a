// refused: TPACKET_V3
// peer: no, CRIU 4.2 loses what is in the ring
/* A ring of version 3. */
#include "packet.h"

int main(int argc, char **argv)
{
	struct tpacket_req3 ask = { .tp_block_size = 4096, .tp_block_nr = 2, .tp_frame_size = 2048, .tp_frame_nr = 4, .tp_retire_blk_tov = 50 };
	int fd;

	wl_init(argc, argv);
	fd = packet_socket(SOCK_RAW, 0);
	net_set(fd, SOL_PACKET, PACKET_VERSION, TPACKET_V3);
	MUST(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ask, sizeof(ask)));

	wl_ready();
	if (wl_lose)
		close(fd);
	CHECK(net_get(fd, SOL_PACKET, PACKET_VERSION) == TPACKET_V3, "another version");
	wl_ok();
}
