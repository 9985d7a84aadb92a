/* Signal actions: handlers with their flags and masks, ignored signals, defaults; and two processes with different ones. */
#include "workload.h"

/* The kernel's own view of an action, with the restorer that glibc fills in. */
struct kernel_action {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
};

static volatile int last, with_value;

static void plain(int signal)
{
	last = signal;
}

static void with_info(int signal, siginfo_t *info, void *context)
{
	(void)context;
	last = signal;
	with_value = info->si_value.sival_int;
}

static void read_all(struct kernel_action *actions)
{
	for (int signal = 1; signal <= 64; signal++)
		MUST(syscall(SYS_rt_sigaction, signal, NULL, &actions[signal], 8));
}

int main(int argc, char **argv)
{
	struct kernel_action before[65] = { 0 }, now[65] = { 0 };
	struct sigaction action = { 0 };
	pid_t child;

	wl_init(argc, argv);
	action.sa_handler = plain;
	action.sa_flags = SA_RESTART | SA_NODEFER;
	sigaddset(&action.sa_mask, SIGHUP);
	sigaddset(&action.sa_mask, SIGRTMAX);
	MUST(sigaction(SIGUSR1, &action, NULL));
	action.sa_sigaction = with_info;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK;
	MUST(sigaction(SIGRTMIN + 5, &action, NULL));
	action.sa_handler = plain;
	action.sa_flags = SA_RESETHAND;
	MUST(sigaction(SIGUSR2, &action, NULL));
	action.sa_flags = SA_NOCLDSTOP | SA_NOCLDWAIT;
	action.sa_handler = SIG_DFL;
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
	child = wl_fork();
	if (child == 0) {
		signal(SIGUSR1, SIG_IGN);
		signal(SIGPIPE, SIG_DFL);
		read_all(before);
		wl_child_ready();
		wl_wait();
		read_all(now);
		CHECK(memcmp(before, now, sizeof(now)) == 0, "the child's actions differ");
		_exit(0);
	}
	read_all(before);

	wl_ready();
	if (wl_lose)
		signal(SIGTTOU, SIG_DFL);
	read_all(now);
	for (int signal = 1; signal <= 64; signal++)
		CHECK(memcmp(&before[signal], &now[signal], sizeof(now[0])) == 0, "signal %d: handler, flags, restorer, mask were %p %#lx %p %#lx, are %p %#lx %p %#lx",
		      signal, before[signal].handler, before[signal].flags, before[signal].restorer, before[signal].mask, now[signal].handler,
		      now[signal].flags, now[signal].restorer, now[signal].mask);
	raise(SIGUSR1);
	CHECK(last == SIGUSR1, "the plain handler does not run");
	MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){ .sival_int = 99 }));
	CHECK(last == SIGRTMIN + 5 && with_value == 99, "the handler with information does not run");
	raise(SIGUSR2);
	CHECK(last == SIGUSR2 && signal(SIGUSR2, SIG_DFL) == SIG_DFL, "the one-shot handler is not reset");
	wl_join(child);
	wl_ok();
}
