/* Frozen inside a signal handler that runs on an alternate stack: it returns to where the signal struck. */
#include <pthread.h>

#include "workload.h"

static uint8_t area[65536];
static volatile int inside, released, came_back;
static volatile long counter;

static void handler(int signal, siginfo_t *info, void *context)
{
	stack_t stack;

	(void)signal;
	(void)context;
	MUST(sigaltstack(NULL, &stack));
	inside = (stack.ss_flags & SS_ONSTACK) && info->si_value.sival_int == 1234;
	while (!released)
		;
	MUST(sigaltstack(NULL, &stack));
	CHECK(stack.ss_flags & SS_ONSTACK && stack.ss_sp == area, "the handler is no longer on its stack: %p, flags %#x", stack.ss_sp, stack.ss_flags);
	if (wl_lose)
		info->si_value.sival_int = 0;
	CHECK(info->si_value.sival_int == 1234, "the signal's value is %d", info->si_value.sival_int);
}

static void *count(void *unused)
{
	stack_t stack = { .ss_sp = area, .ss_size = sizeof(area) };
	volatile double number = 1;
	sigset_t mask;

	(void)unused;
	MUST(sigaltstack(&stack, NULL));
	while (!came_back) {
		counter++;
		number = number * 2 / 2;
		CHECK(number == 1, "a computation went wrong around the handler: %f", number);
	}
	MUST0(pthread_sigmask(SIG_BLOCK, NULL, &mask));
	CHECK(sigismember(&mask, SIGUSR1) == 0 && sigismember(&mask, SIGHUP) == 0, "the handler's mask stays");
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_ONSTACK | SA_SIGINFO };
	pthread_t thread;
	long before;

	wl_init(argc, argv);
	sigaddset(&action.sa_mask, SIGHUP);
	MUST(sigaction(SIGUSR1, &action, NULL));
	MUST0(pthread_create(&thread, NULL, count, NULL));
	WAIT_FOR(counter > 0, "the thread does not start");
	MUST0(pthread_sigqueue(thread, SIGUSR1, (union sigval){ .sival_int = 1234 }));
	WAIT_FOR(inside, "the handler does not run");
	before = counter;

	wl_ready();
	CHECK(counter == before, "the thread left its handler by itself");
	released = 1;
	WAIT_FOR(counter > before, "the thread does not come back from its handler");
	came_back = 1;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
