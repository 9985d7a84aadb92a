// refused: eBPF chooses
// peer: no, what is refused is not asked of it
/* Sockets that share a port, of which a program of eBPF chooses one. */
#include "net.h"

#include <linux/bpf.h>
#include <sys/syscall.h>

int main(int argc, char **argv)
{
	struct bpf_insn second[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr program = {
		.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
		.insn_cnt = 2,
		.insns = (uintptr_t)second,
		.license = (uintptr_t)"Apache-2.0",
	};
	int sockets[2], loaded;
	char got[4];

	wl_init(argc, argv);
	loaded = MUST(syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof(program)));
	for (int i = 0; i < 2; i++) {
		struct sockaddr_storage address = net_loopback(AF_INET, i == 0 ? 0 : net_port(sockets[0]));

		sockets[i] = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
		net_set(sockets[i], SOL_SOCKET, SO_REUSEPORT, 1);
		MUST(bind(sockets[i], (struct sockaddr *)&address, net_size(AF_INET)));
	}
	net_set(sockets[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, loaded);
	close(loaded);

	wl_ready();
	if (wl_lose)
		net_set(sockets[0], SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0);
	for (int i = 0; i < 16; i++) {
		int speaker = MUST(socket(AF_INET, SOCK_DGRAM, 0));

		net_connect(speaker, AF_INET, net_port(sockets[0]));
		MUST(send(speaker, "x", 1, 0));
		CHECK(recv(sockets[1], got, 4, 0) == 1, "%d: the second does not receive", i);
	}
	wl_ok();
}
