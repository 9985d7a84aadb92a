// peer: no, CRIU 4.2 loses the program
/* Sockets that share a port, of which a classic program chooses one: of TCP and of UDP. */
#include "net.h"

int main(int argc, char **argv)
{
	struct sock_filter second[] = { { BPF_LD | BPF_IMM, 0, 0, 1 }, { BPF_RET | BPF_A, 0, 0, 0 } };
	struct sock_fprog program = { 2, second };
	static const int types[2] = { SOCK_STREAM, SOCK_DGRAM };
	int sockets[2][2];

	wl_init(argc, argv);
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++) {
			int fd = MUST(socket(AF_INET, types[i] | SOCK_NONBLOCK, 0));
			struct sockaddr_storage address = net_loopback(AF_INET, j == 0 ? 0 : net_port(sockets[i][0]));

			net_set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
			MUST(bind(fd, (struct sockaddr *)&address, net_size(AF_INET)));
			if (i == 0)
				MUST(listen(fd, 32));
			sockets[i][j] = fd;
		}
	for (int i = 0; i < 2; i++)
		MUST(setsockopt(sockets[i][0], SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program)));

	wl_ready();
	if (wl_lose)
		MUST(setsockopt(sockets[1][0], SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &(int){ 0 }, sizeof(int)));
	for (int i = 0; i < 16; i++) {
		int client = MUST(socket(AF_INET, SOCK_STREAM, 0)), speaker = MUST(socket(AF_INET, SOCK_DGRAM, 0));
		char got[4];

		net_connect(client, AF_INET, net_port(sockets[0][0]));
		CHECK(accept(sockets[0][0], NULL, NULL) < 0 && errno == EAGAIN, "%d: the first accepts", i);
		MUST(accept(sockets[0][1], NULL, NULL));
		net_connect(speaker, AF_INET, net_port(sockets[1][0]));
		MUST(send(speaker, "x", 1, 0));
		CHECK(recv(sockets[1][0], got, 4, 0) < 0 && errno == EAGAIN, "%d: the first receives", i);
		CHECK(recv(sockets[1][1], got, 4, 0) == 1, "%d: the second does not receive", i);
	}
	wl_ok();
}
