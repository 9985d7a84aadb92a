/* The client of the demo: it talks with the keeper over one connection of TCP, a hundred times a second, and knows what
 * has to come back. When it is told to end, it says how often it was answered and how long it had to wait at most.
 *
 *   client PORT FILE     says to FILE how it went */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t ended;

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	double longest = 0;
	long answers = 0;

	if (argc != 3 || !freopen(argv[2], "w", stdout))
		errx(2, "usage: client PORT FILE");
	server.sin_port = htons(atoi(argv[1]));
	if (connect(fd, (struct sockaddr *)&server, sizeof server))
		err(1, "connect");
	signal(SIGTERM, end);
	while (!ended) {
		char word[32] = "", answer[32] = "";
		double begun = now(), took;
		ssize_t size = sizeof word, got;

		snprintf(word, sizeof word, "question %ld", answers);
		if (send(fd, word, size, MSG_NOSIGNAL) != size) {
			printf("LOST: the connection: %m\n");
			return 1;
		}
		got = recv(fd, answer, size, MSG_WAITALL);
		if (got != size || memcmp(word, answer, size)) {
			printf("LOST: instead of '%s' comes '%.*s' (%m)\n", word, (int)sizeof answer, answer);
			return 1;
		}
		answers++;
		took = now() - begun;
		longest = took > longest ? took : longest;
		usleep(10000);
	}
	printf("%ld questions, each with its answer, on one connection; the longest pause was %.0f ms\n", answers, longest);
	return 0;
}
