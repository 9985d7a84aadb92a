// refused: one of them is no answer of ICMP
// peer: no, what is refused is not asked of it
/* A raw socket that has not read an echo, to which this host has answered. */
#include <netinet/ip_icmp.h>

#include "net.h"

int main(int argc, char **argv)
{
	struct icmphdr echo = { .type = ICMP_ECHO, .checksum = htons(0xf7ff) };
	struct sockaddr_in own = { .sin_family = AF_INET };
	char got[64];
	int fd;

	wl_init(argc, argv);
	own.sin_addr.s_addr = htonl(0x7f400000 | (getpid() & 0x3fffff));
	fd = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	MUST(bind(fd, (struct sockaddr *)&own, sizeof(own)));
	MUST(connect(fd, (struct sockaddr *)&own, sizeof(own)));
	MUST(send(fd, &echo, sizeof(echo), 0));

	wl_ready();
	if (wl_lose)
		MUST(recv(fd, got, sizeof(got), MSG_DONTWAIT));
	CHECK(recv(fd, got, sizeof(got), MSG_DONTWAIT) == 28 && got[20] == ICMP_ECHO, "the echo is lost");
	wl_ok();
}
