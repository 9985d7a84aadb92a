/* The workloads of the bench, and the limits that they are held against.
 *
 *   load tiny | threads N | family N | memory MIB     says "ready" on stdout and sleeps
 *   load connections N                                the same, with so many connections of TCP to a client that is not
 *                                                     of its session and ends with them
 *   load writer RATE MIB                              the same with memory, of which it writes to so many random pages a
 *                                                     second; after SIGUSR1 it prints how often it could, and ends
 *   load shared-writer RATE MIB                       the same with shared memory; a rate of 0 leaves it at rest
 *   load reader MIB                                   says "ready"; sleeps until it is another day for it (the clock has
 *                                                     jumped, as it has by a restore), tells the clock, reads a byte of
 *                                                     each page in no order, tells the clock once more, and sleeps
 *   load warm MIB                                     has the host give this guest so much memory, and lets go of it:
 *                                                     for about a second it can be had again without the host
 *   load write FILE MIB | read FILE MIB               a plain write of random memory to a new file, a plain read of a
 *                                                     file into fresh memory: prints microseconds */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *map_as(int sharing, size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap %zu", bytes);
	return memory;
}

static char *map(size_t bytes)
{
	return map_as(MAP_PRIVATE, bytes);
}

/* xorshift64*: no page is like another, and nothing of it can be packed. */
static char *randomly(char *memory, size_t bytes)
{
	uint64_t state = 88172645463325252ULL;

	for (size_t at = 0; at < bytes; at += sizeof state) {
		state ^= state >> 12;
		state ^= state << 25;
		state ^= state >> 27;
		*(uint64_t *)(memory + at) = state * 2685821657736338717ULL;
	}
	return memory;
}

static char *map_random(size_t bytes)
{
	return randomly(map(bytes), bytes);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void move_all(int fd, char *memory, size_t bytes, ssize_t (*move)(int, char *, size_t))
{
	double begun = now();

	for (size_t at = 0; at < bytes;) {
		ssize_t moved = move(fd, memory + at, bytes - at);

		if (moved <= 0)
			err(1, "after %zu of %zu bytes", at, bytes);
		at += moved;
	}
	printf("%.0f\n", now() - begun);
}

static ssize_t out(int fd, char *memory, size_t bytes)
{
	return write(fd, memory, bytes);
}

static ssize_t in(int fd, char *memory, size_t bytes)
{
	return read(fd, memory, bytes);
}

static void *sleep_on(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

static void threads(long n)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	while (--n > 0)
		if (pthread_create(&thread, &attributes, sleep_on, NULL))
			errx(1, "no thread");
}

static void family(long n)
{
	while (--n > 0) {
		pid_t child = fork();

		if (child < 0)
			err(1, "fork");
		if (child == 0)
			sleep_on(NULL);
	}
}

static int stream(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		err(1, "socket");
	return fd;
}

/* Ends when the last connection has. */
static void client(const struct sockaddr_in *server, long n)
{
	struct pollfd last;

	setsid();
	if (fork() != 0)
		_exit(0);
	while (n-- > 0) {
		last = (struct pollfd){ .fd = stream(), .events = POLLIN };
		if (connect(last.fd, (const struct sockaddr *)server, sizeof *server))
			err(1, "connect");
	}
	close(STDOUT_FILENO);
	poll(&last, 1, 300000);
	_exit(0);
}

static void connections(long n)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	struct rlimit files = { n + 64, n + 64 };
	int listener = stream();

	if (setrlimit(RLIMIT_NOFILE, &files))
		err(1, "setrlimit");
	if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 128) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		err(1, "listen");
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	if (child == 0)
		client(&address, n);
	waitpid(child, NULL, 0);
	while (n-- > 0)
		if (accept(listener, NULL, NULL) < 0)
			err(1, "accept");
	close(listener);
}

static volatile sig_atomic_t is_told;

static void tell(int signal)
{
	is_told = signal;
}

/* Writes every half millisecond, as many pages as are due; without a rate, as fast as it can. */
static void write_pages(char *memory, size_t bytes, unsigned long rate)
{
	const double pause = 500;
	uint64_t state = 88172645463325252ULL, written = 0;
	double begun, at, longest = 0, last;

	signal(SIGUSR1, tell);
	puts("ready");
	fflush(stdout);
	last = begun = now();
	while (!is_told) {
		at = now();
		if (at - last > longest)
			longest = at - last;
		last = at;
		for (uint64_t due = rate ? (at - begun) * rate / 1e6 : written + 64; written < due; written++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			*(volatile uint64_t *)(memory + state % (bytes >> 12) * 4096) = state;
		}
		if (rate)
			usleep(pause);
	}
	printf("%.0f pages a second, longest pause %.1f ms\n", written / (now() - begun) * 1e6, longest / 1e3);
	exit(0);
}

/* Wakes up when it has not run for longer than a nap: when it has been restored. */
static void reader(size_t bytes)
{
	char *memory = map_random(bytes);
	size_t pages = bytes / 4096, sum = 0;
	double last;

	puts("ready");
	fflush(stdout);
	for (last = now(); now() - last < 20e3; usleep(500))
		last = now();
	printf("%.6f\n", now() / 1e6);
	fflush(stdout);
	/* A step without a common divisor comes to every page. */
	for (size_t i = 0, page = 0; i < pages; i++, page = (page + 104729) % pages)
		sum += memory[page * 4096 + page % 4096];
	printf("%.6f\n", now() / 1e6);
	fflush(stdout);
	for (;;)
		usleep(sum == 1 ? 999999 : 1000000);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	size_t mib = argc > 2 ? strtoul(argv[argc - 1], NULL, 10) << 20 : 0;

	if (!strcmp(what, "warm")) {
		char *memory = map(mib);

		/* Twenty times as fast as page by page; where there are no huge pages, it is slow. */
		madvise(memory, mib, MADV_HUGEPAGE);
		memset(memory, 1, mib);
		return 0;
	}
	if (!strcmp(what, "write") && argc == 4) {
		char *memory = map_random(mib);
		int fd = open(argv[2], O_WRONLY | O_CREAT | O_EXCL, 0600);

		if (fd < 0)
			err(1, "%s", argv[2]);
		move_all(fd, memory, mib, out);
		return 0;
	}
	if (!strcmp(what, "read") && argc == 4) {
		int fd = open(argv[2], O_RDONLY);

		if (fd < 0)
			err(1, "%s", argv[2]);
		move_all(fd, map(mib), mib, in);
		return 0;
	}
	if (!strcmp(what, "reader"))
		reader(mib);
	if (!strcmp(what, "threads"))
		threads(strtol(argv[2], NULL, 10));
	else if (!strcmp(what, "family"))
		family(strtol(argv[2], NULL, 10));
	else if (!strcmp(what, "connections"))
		connections(strtol(argv[2], NULL, 10));
	else if (!strcmp(what, "memory"))
		map_random(mib);
	else if (!strcmp(what, "writer"))
		write_pages(map_random(mib), mib, strtoul(argv[2], NULL, 10));
	else if (!strcmp(what, "shared-writer")) {
		char *memory = randomly(map_as(MAP_SHARED, mib), mib);

		if (strtoul(argv[2], NULL, 10))
			write_pages(memory, mib, strtoul(argv[2], NULL, 10));
	} else if (strcmp(what, "tiny"))
		errx(2, "unknown: %s", what);
	puts("ready");
	fflush(stdout);
	sleep_on(NULL);
}
