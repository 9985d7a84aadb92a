/* A socket's filter, which lets short datagrams through. */
#include "net.h"

int main(int argc, char **argv)
{
	/* The length includes the header of 8 bytes. */
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 12, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, 0xffff),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_filter told[8];
	struct sock_fprog program = { .len = 4, .filter = code };
	socklen_t count = 8;
	int filtered, sender;
	char got[16];

	wl_init(argc, argv);
	filtered = net_bound(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0, 0);
	MUST(setsockopt(filtered, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));

	wl_ready();
	if (wl_lose)
		net_set(filtered, SOL_SOCKET, SO_DETACH_FILTER, 0);
	MUST(getsockopt(filtered, SOL_SOCKET, SO_GET_FILTER, told, &count));
	CHECK(count == 4 && memcmp(told, code, sizeof(code)) == 0, "another filter");
	sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	net_connect(sender, AF_INET, net_port(filtered));
	MUST(send(sender, "too long", 8, 0));
	MUST(send(sender, "fit", 3, 0));
	CHECK(recv(filtered, got, sizeof(got), 0) == 3, "the long one is let through");
	CHECK(recv(filtered, got, sizeof(got), 0) == -1 && errno == EAGAIN, "there are more");
	wl_ok();
}
