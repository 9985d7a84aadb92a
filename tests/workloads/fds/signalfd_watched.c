// peer: no, CRIU 4.2 adds a watch under its number alone, which must be open
/*
 * signalfds in epoll sets. The kernel ties such a watch to the signals of the process that has added it, not to the file:
 * whoever waits is woken by a signal that comes while he waits, of that process alone.
 */
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "workload.h"

/* A set with a watch of `file` under the number `under`; what stands there otherwise comes back. */
static int set_of(int file, int under, uint32_t events, int data)
{
	int set = MUST(epoll_create1(EPOLL_CLOEXEC)), kept = -1;
	bool free_number = under != file && fcntl(under, F_GETFD) < 0;

	if (under != file && !free_number)
		kept = MUST(fcntl(under, F_DUPFD_CLOEXEC, 100));
	MUST(dup2(file, under));
	MUST(epoll_ctl(set, EPOLL_CTL_ADD, under, &(struct epoll_event){ .events = events, .data.u32 = data }));
	if (free_number)
		MUST(close(under));
	if (kept >= 0) {
		MUST(dup2(kept, under));
		MUST(close(kept));
	}
	return set;
}

/* Sends `who` a signal once the caller waits in epoll_wait. */
static pid_t signal_later(pid_t who, int signal)
{
	pid_t pid = MUST(fork());

	if (pid == 0) {
		wl_sleep_ms(100);
		MUST(kill(who, signal));
		_exit(0);
	}
	return pid;
}

static void wakes(const char *what, int set, int data, int signals, int signal)
{
	struct epoll_event got = { 0 };
	struct signalfd_siginfo info;
	pid_t sender = signal_later(getpid(), signal);
	int events;

	events = epoll_wait(set, &got, 1, 5000);
	CHECK(events == 1 && (int)got.data.u32 == data, "%s: %d events, data %u", what, events, got.data.u32);
	CHECK(read(signals, &info, sizeof(info)) == sizeof(info) && (int)info.ssi_signo == signal, "%s: not that signal", what);
	MUST(waitpid(sender, NULL, 0));
}

/* A child that has the files of its parent, and a pair of its own. */
static int child(int ready)
{
	sigset_t mask;
	int signals, set;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	signals = MUST(signalfd(-1, &mask, SFD_NONBLOCK));
	set = set_of(signals, signals, EPOLLIN, 7);
	MUST(write(ready, "x", 1));
	wl_wait();
	wakes("the child's", set, 7, signals, SIGUSR2);
	return 0;
}

int main(int argc, char **argv)
{
	int signals, plain, closed, taken, edge, once, outer, status, ready[2];
	sigset_t mask;
	pid_t pid;
	char told;

	wl_init(argc, argv);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGUSR2);
	MUST(sigprocmask(SIG_BLOCK, &mask, NULL));
	sigdelset(&mask, SIGUSR2);
	signals = MUST(signalfd(-1, &mask, SFD_NONBLOCK));
	plain = set_of(signals, signals, EPOLLIN, 1);
	closed = set_of(signals, 60, EPOLLIN, 2);
	/* Under the number of standard input, which is another file. */
	taken = set_of(signals, STDIN_FILENO, EPOLLIN, 3);
	edge = set_of(signals, signals, EPOLLIN | EPOLLET, 4);
	once = set_of(signals, signals, EPOLLIN | EPOLLONESHOT, 5);
	outer = set_of(plain, plain, EPOLLIN, 6);
	MUST(pipe(ready));
	pid = MUST(fork());
	if (pid == 0)
		_exit(child(ready[1]));
	MUST(read(ready[0], &told, 1));

	wl_ready();
	if (wl_lose)
		MUST(epoll_ctl(plain, EPOLL_CTL_DEL, signals, NULL));
	wakes("plain", plain, 1, signals, SIGUSR1);
	wakes("under a closed number", closed, 2, signals, SIGUSR1);
	wakes("under another file's number", taken, 3, signals, SIGUSR1);
	wakes("edge-triggered", edge, 4, signals, SIGUSR1);
	wakes("nested", outer, 6, signals, SIGUSR1);
	/* It has seen the first of them. */
	CHECK(MUST(epoll_wait(once, &(struct epoll_event){ 0 }, 1, 0)) == 0, "a one-shot watch tells of a signal that was read");
	CHECK(fcntl(60, F_GETFD) < 0, "descriptor 60 is open");
	MUST(waitpid(pid, &status, 0));
	CHECK(status == 0, "the child ends with %#x", status);
	wl_ok();
}
