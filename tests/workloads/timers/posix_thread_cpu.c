// peer: no, CRIU 4.2 gives every such timer to the first thread
/* Timers on the processor time of threads: each thread has its own, and it fires when that thread has worked. */
#include <pthread.h>

#include "workload.h"

static volatile bool go;
static volatile int begun;
static __thread volatile int fired;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	fired = info->si_value.sival_int;
}

static void *work(void *argument)
{
	int number = (long)argument;
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 4, .sigev_value.sival_int = number };
	struct itimerspec timer = { { 0, 0 }, { 0, 100000000 } };
	timer_t id;

	event._sigev_un._tid = wl_gettid();
	MUST(timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &id));
	MUST(timer_settime(id, 0, &timer, NULL));
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	while (!go)
		wl_sleep_ms(2);
	CHECK(!fired, "thread %d: its timer fired though it did not work", number);
	if (wl_lose)
		MUST(timer_delete(id));
	for (long until = wl_now_ms(CLOCK_MONOTONIC) + 3000; !fired && wl_now_ms(CLOCK_MONOTONIC) < until;)
		;
	CHECK(fired == number, "thread %d: its timer gave %d", number, fired);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	pthread_t threads[2];

	wl_init(argc, argv);
	MUST(sigaction(SIGRTMIN + 4, &action, NULL));
	for (long i = 0; i < 2; i++)
		MUST0(pthread_create(&threads[i], NULL, work, (void *)(i + 1)));
	WAIT_FOR(begun == 2, "the threads do not start");
	wl_ready();
	go = true;
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_ok();
}
