/* Owners for signals by fcntl: a process, a group, a thread, with a signal of choice; O_ASYNC still sends it. */
#include "workload.h"

static volatile int arrived, arrived_fd;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	arrived_fd = info->si_fd;
	arrived++;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct f_owner_ex thread = { F_OWNER_TID, 0 }, got;
	int pipes[3][2], file;

	wl_init(argc, argv);
	MUST(sigaction(SIGRTMIN + 6, &action, NULL));
	for (int i = 0; i < 3; i++)
		MUST(pipe(pipes[i]));
	file = MUST(open(wl_path("file"), O_CREAT | O_RDWR, 0600));
	MUST(fcntl(pipes[0][0], F_SETOWN, getpid()));
	MUST(fcntl(pipes[0][0], F_SETSIG, SIGRTMIN + 6));
	MUST(fcntl(pipes[0][0], F_SETFL, O_ASYNC | O_NONBLOCK));
	MUST(fcntl(pipes[1][0], F_SETOWN, -getpgrp()));
	thread.pid = wl_gettid();
	MUST(fcntl(pipes[2][0], F_SETOWN_EX, &thread));
	MUST(fcntl(pipes[2][0], F_SETSIG, SIGUSR2));
	MUST(fcntl(file, F_SETOWN, getpid()));

	wl_ready();
	if (wl_lose)
		MUST(fcntl(pipes[0][0], F_SETOWN, 0));
	CHECK(fcntl(pipes[0][0], F_GETOWN) == getpid() && fcntl(pipes[0][0], F_GETSIG) == SIGRTMIN + 6, "first pipe: owner %d, signal %d",
	      fcntl(pipes[0][0], F_GETOWN), fcntl(pipes[0][0], F_GETSIG));
	MUST(fcntl(pipes[1][0], F_GETOWN_EX, &got));
	CHECK(got.type == F_OWNER_PGRP && got.pid == getpgrp(), "second pipe: owner %d of type %d", got.pid, got.type);
	MUST(fcntl(pipes[2][0], F_GETOWN_EX, &got));
	CHECK(got.type == F_OWNER_TID && got.pid == thread.pid && fcntl(pipes[2][0], F_GETSIG) == SIGUSR2, "third pipe: owner %d of type %d, signal %d",
	      got.pid, got.type, fcntl(pipes[2][0], F_GETSIG));
	CHECK(fcntl(file, F_GETOWN) == getpid(), "the file's owner is %d", fcntl(file, F_GETOWN));
	CHECK(fcntl(pipes[0][1], F_GETOWN) == 0, "the other end has an owner: %d", fcntl(pipes[0][1], F_GETOWN));
	CHECK(fcntl(pipes[0][0], F_GETFL) & O_ASYNC, "O_ASYNC is lost");
	MUST(write(pipes[0][1], "x", 1));
	WAIT_FOR(arrived, "no signal comes for new input");
	CHECK(arrived_fd == pipes[0][0], "the signal names descriptor %d", arrived_fd);
	wl_ok();
}
