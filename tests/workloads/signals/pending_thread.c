/* Signals queued for single threads, beside one for the whole process: each thread gets its own, and no other. */
#include <pthread.h>

#include "workload.h"

#define COUNT 3

static pthread_barrier_t begun;
static volatile bool go;
static pid_t tids[COUNT];

static void queue(pid_t tid, int signal, int value)
{
	siginfo_t info = { 0 };

	info.si_signo = signal;
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_value.sival_int = value;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, &info));
}

/* The set of signals that are pending for this thread alone (/proc/thread-self/status). */
static uint64_t pending(const char *field)
{
	char status[8192], *line;

	wl_read_file("/proc/thread-self/status", status, sizeof(status));
	line = strstr(status, field);
	return line ? strtoull(line + strlen(field), NULL, 16) : 0;
}

static void *one(void *argument)
{
	struct timespec none = { 0, 0 };
	int number = (long)argument, got;
	siginfo_t info;
	sigset_t own;

	tids[number] = wl_gettid();
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	CHECK(pending("\nSigPnd:") == (1ull << (SIGRTMIN - 1) | 1ull << (SIGUSR1 - 1)), "thread %d: pending for it are %#lx", number,
	      pending("\nSigPnd:"));
	sigemptyset(&own);
	sigaddset(&own, SIGRTMIN);
	for (int i = 0; i < 5; i++) {
		if (wl_lose && i == 2)
			sigtimedwait(&own, &info, &none);
		got = sigtimedwait(&own, &info, &none);
		CHECK(got == SIGRTMIN && info.si_value.sival_int == number * 10 + i, "thread %d: value %d instead of %d", number, info.si_value.sival_int,
		      number * 10 + i);
	}
	CHECK(sigtimedwait(&own, &info, &none) < 0, "thread %d has a sixth signal", number);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[COUNT];
	sigset_t all;

	wl_init(argc, argv);
	sigfillset(&all);
	MUST(sigprocmask(SIG_SETMASK, &all, NULL));
	MUST0(pthread_barrier_init(&begun, NULL, COUNT + 1));
	for (long i = 0; i < COUNT; i++)
		MUST0(pthread_create(&threads[i], NULL, one, (void *)i));
	pthread_barrier_wait(&begun);
	for (int i = 0; i < COUNT; i++) {
		for (int n = 0; n < 5; n++)
			queue(tids[i], SIGRTMIN, i * 10 + n);
		MUST(syscall(SYS_tgkill, getpid(), tids[i], SIGUSR1));
	}
	MUST(kill(getpid(), SIGUSR2));

	wl_ready();
	CHECK(pending("\nSigPnd:") == 0, "signals are pending for the main thread: %#lx", pending("\nSigPnd:"));
	CHECK(pending("\nShdPnd:") == 1ull << (SIGUSR2 - 1), "pending for the process are %#lx", pending("\nShdPnd:"));
	go = true;
	for (int i = 0; i < COUNT; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_ok();
}
