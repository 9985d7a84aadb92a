/* The program of the demo: it counts, and keeps what a program can keep. Each line that it prints proves that all of it
 * is still there: an open file and its position, a file that no longer has a name, a timer, threads, a pipe with data in
 * it, and memory. A further thread answers a client over TCP, whose port it has written to DEMO_DIR/port. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 3, MEMORY = 32 << 20 };

static atomic_long worked[THREADS];
static volatile sig_atomic_t rung;

static void *work(void *number)
{
	for (;;) {
		worked[(long)number]++;
		usleep(10000);
	}
	return NULL;
}

static void ring(int signal)
{
	(void)signal;
	rung++;
}

static void lost(const char *what)
{
	printf("LOST: %s\n", what);
	exit(1);
}

/* The deleted file holds one byte for each count. */
static void check_deleted(int fd, long count)
{
	char byte = 'x';

	if (lseek(fd, 0, SEEK_END) != count || pwrite(fd, &byte, 1, count) != 1)
		lost("the deleted file");
}

static void check_memory(const char *memory)
{
	for (long at = 0; at < MEMORY; at += 4096)
		if (*(const long *)(memory + at) != at * 31)
			lost("memory");
}

/* What one client says, it says back. */
static void *serve(void *listener)
{
	int client = accept((int)(long)listener, NULL, NULL);
	char word[64];
	ssize_t got;

	if (client < 0)
		lost("the client");
	while ((got = recv(client, word, sizeof word, 0)) > 0)
		if (send(client, word, got, MSG_NOSIGNAL) != got)
			lost("the client's answer");
	close(client);
	return NULL;
}

static void listen_for_client(const char *dir)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	char path[4096];
	pthread_t thread;
	FILE *file;

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		lost("the listening socket");
	pthread_create(&thread, NULL, serve, (void *)(long)listener);
	snprintf(path, sizeof path, "%s/port", dir);
	file = fopen(path, "w");
	if (file == NULL || fprintf(file, "%d\n", ntohs(address.sin_port)) < 0 || fclose(file))
		lost("the port");
}

int main(void)
{
	const char *dir = getenv("DEMO_DIR") ?: "/tmp";
	char path[4096], word[8] = "";
	char *memory = malloc(MEMORY);
	struct itimerspec every = { { 0, 100000000 }, { 0, 100000000 } };
	struct timespec nap = { 0, 250000000 };
	pthread_t thread;
	timer_t timer;
	int file, deleted, pipes[2];

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (long at = 0; at < MEMORY; at += 4096)
		*(long *)(memory + at) = at * 31;
	snprintf(path, sizeof path, "%s/diary", dir);
	file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	snprintf(path, sizeof path, "%s/gone", dir);
	deleted = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	unlink(path);
	if (file < 0 || deleted < 0 || pipe(pipes) || write(pipes[1], "unread", 6) != 6)
		lost("the start");
	signal(SIGALRM, ring);
	if (timer_create(CLOCK_MONOTONIC, NULL, &timer) || timer_settime(timer, 0, &every, NULL))
		lost("the timer");
	for (long i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, work, (void *)i);
	listen_for_client(dir);

	for (long count = 0;; count++) {
		check_deleted(deleted, count);
		check_memory(memory);
		dprintf(file, "%ld\n", count);
		if (read(pipes[0], word, 6) != 6 || strcmp(word, "unread") || write(pipes[1], word, 6) != 6)
			lost("the pipe");
		printf("count %3ld | timer rang %3d times | threads worked %ld %ld %ld | diary at byte %ld | deleted file %ld bytes\n",
		       count, rung, worked[0], worked[1], worked[2], (long)lseek(file, 0, SEEK_CUR), count + 1);
		while (nanosleep(&nap, &nap))
			;
		nap.tv_nsec = 250000000;
	}
}
