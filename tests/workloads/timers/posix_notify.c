/* POSIX timers of every kind of notice: a signal with a value, to one thread, none at all; each fires on. */
#include <pthread.h>

#include "workload.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile int got_process, got_thread, wrong;
static volatile pid_t thread_tid;
static volatile bool stop;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (info->si_code != SI_TIMER)
		wrong++;
	if (signal == SIGRTMIN + 1) {
		got_process++;
		wrong += info->si_value.sival_ptr != (void *)0x123456789abc;
	} else {
		got_thread++;
		wrong += info->si_value.sival_int != 22 || wl_gettid() != thread_tid;
	}
}

static void *receive(void *unused)
{
	(void)unused;
	thread_tid = wl_gettid();
	while (!stop)
		wl_sleep_ms(2);
	return NULL;
}

static timer_t start(struct sigevent event)
{
	struct itimerspec timer = { { 0, 15000000 }, { 0, 15000000 } };
	timer_t id;

	MUST(timer_create(CLOCK_MONOTONIC, &event, &id));
	MUST(timer_settime(id, 0, &timer, NULL));
	return id;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerspec now;
	timer_t process, to_thread, silent;
	struct sigevent event;
	pthread_t thread;
	int before[2];

	wl_init(argc, argv);
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	MUST(sigaction(SIGRTMIN + 2, &action, NULL));
	MUST0(pthread_create(&thread, NULL, receive, NULL));
	WAIT_FOR(thread_tid, "the thread does not start");
	process = start((struct sigevent){ .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_ptr = (void *)0x123456789abc });
	event = (struct sigevent){ .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2, .sigev_value.sival_int = 22 };
	event.sigev_notify_thread_id = thread_tid;
	to_thread = start(event);
	silent = start((struct sigevent){ .sigev_notify = SIGEV_NONE });

	wl_ready();
	if (wl_lose)
		MUST(timer_delete(to_thread));
	before[0] = got_process;
	before[1] = got_thread;
	for (int turn = 0; turn < 1000 && (got_process < before[0] + 3 || got_thread < before[1] + 3); turn++)
		wl_sleep_ms(2);
	CHECK(got_process >= before[0] + 3, "the process's timer does not fire any more");
	CHECK(got_thread >= before[1] + 3, "the thread's timer does not fire any more");
	CHECK(wrong == 0, "%d signals had another code, value or thread", wrong);
	MUST(timer_gettime(silent, &now));
	CHECK(now.it_interval.tv_nsec == 15000000 && now.it_value.tv_nsec > 0 && now.it_value.tv_nsec <= 15000000, "the silent timer: %ld of %ld ns",
	      now.it_value.tv_nsec, now.it_interval.tv_nsec);
	MUST(timer_delete(process));
	stop = true;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
