// peer: no, CRIU 4.2 loses some of the options
/* Packet sockets of all kinds: bindings, memberships, options, a filter, a fanout; they see frames as before. */
#include "packet.h"

#define PROTOCOL packet_protocol(0)
#define OTHER packet_protocol(1)
#define SHARED packet_protocol(2)
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

static void hears(int fd, char letter, ssize_t header, const char *what)
{
	char got[200];
	ssize_t len;

	CHECK(packet_wait(fd) == 1, "%s hears nothing", what);
	len = recv(fd, got, sizeof(got), 0);
	CHECK(len == header + 60 && got[header] == letter && got[header + 59] == letter, "%s gets %zd bytes", what, len);
	CHECK(recv(fd, got, sizeof(got), 0) == -1 && errno == EAGAIN, "%s hears something else as well", what);
}

int main(int argc, char **argv)
{
	/* What begins with a, in a frame without its header. */
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'a', 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0xffff),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog program = { .len = 4, .filter = code };
	struct packet_mreq group = { 1, PACKET_MR_MULTICAST, 6, { 1, 0, 0x5e, 1, 2, 3 } }, all = { 1, PACKET_MR_ALLMULTI, 0, { 0 } };
	int raw, cooked, unbound, shared[2], sender, fanout = (getpid() & 0xffff) | PACKET_FANOUT_LB << 16, heard = 0;
	struct sockaddr_ll name;
	socklen_t size = sizeof(name);

	wl_init(argc, argv);
	raw = packet_socket(SOCK_RAW, PROTOCOL);
	net_set(raw, SOL_PACKET, PACKET_AUXDATA, 1);
	net_set(raw, SOL_PACKET, PACKET_ORIGDEV, 1);
	net_set(raw, SOL_PACKET, PACKET_RESERVE, 24);
	net_set(raw, SOL_PACKET, PACKET_VNET_HDR, 1);
	net_set(raw, SOL_PACKET, PACKET_LOSS, 1);
	net_set(raw, SOL_PACKET, PACKET_TIMESTAMP, 64 /* SOF_TIMESTAMPING_RAW_HARDWARE */);
	net_set(raw, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
	net_set(raw, SOL_SOCKET, SO_RCVBUF, 60000);
	MUST(setsockopt(raw, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &group, sizeof(group)));
	MUST(setsockopt(raw, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &group, sizeof(group)));
	MUST(setsockopt(raw, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof(all)));
	cooked = packet_socket(SOCK_DGRAM, OTHER);
	net_set(cooked, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
	MUST(setsockopt(cooked, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
	unbound = packet_socket(SOCK_RAW, 0);
	for (int i = 0; i < 2; i++) {
		shared[i] = packet_socket(SOCK_DGRAM, SHARED);
		net_set(shared[i], SOL_PACKET, PACKET_FANOUT, fanout);
	}

	wl_ready();
	if (wl_lose)
		net_set(raw, SOL_PACKET, PACKET_AUXDATA, 0);
	CHECK(net_get(raw, SOL_PACKET, PACKET_AUXDATA) == 1 && net_get(raw, SOL_PACKET, PACKET_ORIGDEV) == 1 &&
		      net_get(raw, SOL_PACKET, PACKET_RESERVE) == 24 && net_get(raw, SOL_PACKET, PACKET_VNET_HDR) == 1 &&
		      net_get(raw, SOL_PACKET, PACKET_LOSS) == 1 && net_get(raw, SOL_PACKET, PACKET_TIMESTAMP) == 64 &&
		      net_get(raw, SOL_PACKET, PACKET_IGNORE_OUTGOING) == 1 && net_get(cooked, SOL_PACKET, PACKET_VERSION) == 1,
	      "an option is another");
	CHECK(net_get(shared[0], SOL_PACKET, PACKET_FANOUT) == fanout, "another fanout");
	MUST(getsockname(unbound, (struct sockaddr *)&name, &size));
	CHECK(name.sll_ifindex == 0 && name.sll_protocol == 0, "it is bound");
	sender = packet_socket(SOCK_DGRAM, 0);
	packet_send(sender, PROTOCOL, 'x');
	hears(raw, 'x', 10 + ETH_HLEN, "the raw one");
	packet_send(sender, OTHER, 'b');
	packet_send(sender, OTHER, 'a');
	hears(cooked, 'a', 0, "the one with a filter");
	packet_send(sender, SHARED, 'y');
	packet_send(sender, SHARED, 'z');
	for (int i = 0; i < 2; i++)
		heard += packet_wait(shared[i]);
	CHECK(heard == 2, "the fanout does not go round");
	wl_ok();
}
