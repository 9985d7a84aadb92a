/* signalfds: their masks; signals that wait to be read. */
#include <sys/signalfd.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct signalfd_siginfo info;
	sigset_t first_mask, second_mask, all;
	int first, second;

	wl_init(argc, argv);
	sigemptyset(&first_mask);
	sigaddset(&first_mask, SIGUSR1);
	sigaddset(&first_mask, SIGRTMIN + 4);
	sigemptyset(&second_mask);
	sigaddset(&second_mask, SIGUSR2);
	sigorset(&all, &first_mask, &second_mask);
	MUST(sigprocmask(SIG_BLOCK, &all, NULL));
	first = MUST(signalfd(-1, &first_mask, SFD_NONBLOCK));
	second = MUST(signalfd(-1, &second_mask, SFD_NONBLOCK | SFD_CLOEXEC));
	MUST(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){ .sival_int = 31 }));
	MUST(kill(getpid(), SIGUSR2));

	wl_ready();
	if (wl_lose)
		MUST(signalfd(first, &second_mask, 0));
	CHECK(read(first, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == (unsigned)SIGRTMIN + 4 && info.ssi_int == 31,
	      "the first gives signal %u with %d", info.ssi_signo, info.ssi_int);
	CHECK(read(first, &info, sizeof(info)) < 0 && errno == EAGAIN, "the first gives more, or blocks");
	CHECK(read(second, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == SIGUSR2, "the second gives signal %u", info.ssi_signo);
	MUST(kill(getpid(), SIGUSR1));
	CHECK(read(second, &info, sizeof(info)) < 0, "the second takes the first one's signal");
	CHECK(read(first, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == SIGUSR1, "the first gives signal %u", info.ssi_signo);
	CHECK(fcntl(second, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
	wl_ok();
}
