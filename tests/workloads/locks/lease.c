// flags: --file-locks
/* Leases: read and write, the signal at a break, and that they hold others off. */
#include "workload.h"

static volatile int broken_fd;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	broken_fd = info->si_fd;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	int reading, writing;

	wl_init(argc, argv);
	close(MUST(creat(wl_path("read"), 0600)));
	close(MUST(creat(wl_path("write"), 0600)));
	MUST(sigaction(SIGRTMIN + 7, &action, NULL));
	reading = MUST(open(wl_path("read"), O_RDONLY));
	writing = MUST(open(wl_path("write"), O_RDWR));
	MUST(fcntl(reading, F_SETLEASE, F_RDLCK));
	MUST(fcntl(writing, F_SETLEASE, F_WRLCK));
	MUST(fcntl(reading, F_SETSIG, SIGRTMIN + 7));
	MUST(fcntl(writing, F_SETSIG, SIGRTMIN + 7));

	wl_ready();
	if (wl_lose)
		MUST(fcntl(writing, F_SETLEASE, F_UNLCK));
	CHECK(fcntl(reading, F_GETLEASE) == F_RDLCK, "the read lease is %d", fcntl(reading, F_GETLEASE));
	CHECK(fcntl(writing, F_GETLEASE) == F_WRLCK, "the write lease is %d", fcntl(writing, F_GETLEASE));
	CHECK(open(wl_path("write"), O_RDONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "the write lease does not hold others off");
	WAIT_FOR(broken_fd == writing, "no signal comes at a break (descriptor %d)", broken_fd);
	MUST(fcntl(writing, F_SETLEASE, F_UNLCK));
	CHECK(open(wl_path("write"), O_RDONLY | O_NONBLOCK) >= 0, "the file cannot be opened after the lease: %s", strerror(errno));
	CHECK(open(wl_path("read"), O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK, "the read lease does not hold writers off");
	WAIT_FOR(broken_fd == reading, "no signal comes at the second break");
	wl_ok();
}
