// peer: no, CRIU 4.2 lets a futex(2) with a time limit fail with EINTR
// differs: thread children, children of any thread come back as the first one's
/*
 * Forty threads, so many that it is not looked up of each what it does: in calls of several kinds, some with a time limit,
 * one at work, and children of one that is neither the first nor the last.
 */
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>

#include "workload.h"

#define COUNT 40
#define PARENT 23

static pthread_barrier_t begun;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static volatile bool go;
static volatile unsigned long worked;
static int ends[2], unread[2], never;
static pid_t children[2];

static void *one(void *argument)
{
	long number = (long)argument;
	char byte;

	if (number == PARENT) {
		for (int n = 0; n < 2; n++) {
			children[n] = MUST(fork());
			if (children[n] == 0) {
				wl_wait();
				_exit(70 + n);
			}
		}
	}
	pthread_barrier_wait(&begun);
	switch (number % 5) {
	case 0:
		CHECK(read(ends[0], &byte, 1) == 1, "thread %ld: read gives nothing", number);
		break;
	case 1:
		MUST0(pthread_mutex_lock(&held));
		MUST0(pthread_mutex_unlock(&held));
		break;
	case 2:
		MUST(poll(&(struct pollfd){ .fd = unread[0], .events = POLLIN }, 1, 600000));
		break;
	case 3:
		while (!go && number == 3)
			worked++;
		while (!go)
			wl_nap();
		break;
	default:
		MUST(syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, &(struct timespec){ .tv_sec = 600 }, NULL, 0));
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[COUNT];
	unsigned long before;
	int status;

	wl_init(argc, argv);
	MUST(pipe(ends));
	MUST(pipe(unread));
	MUST0(pthread_mutex_lock(&held));
	MUST0(pthread_barrier_init(&begun, NULL, COUNT + 1));
	for (long n = 0; n < COUNT; n++)
		MUST0(pthread_create(&threads[n], NULL, one, (void *)n));
	pthread_barrier_wait(&begun);
	wl_sleep_ms(20);

	wl_ready();
	before = worked;
	WAIT_FOR(worked > before, "the thread at work has stopped");
	if (wl_lose)
		MUST(waitpid(children[1], &status, 0));
	for (int n = 0; n < 2; n++) {
		MUST(waitpid(children[n], &status, 0));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 70 + n, "child %d ends with %#x", n, status);
	}
	go = true;
	MUST(write(ends[1], "12345678", COUNT / 5));
	MUST(write(unread[1], "x", 1));
	MUST0(pthread_mutex_unlock(&held));
	never = 1;
	MUST(syscall(SYS_futex, &never, FUTEX_WAKE_PRIVATE, COUNT, NULL, NULL, 0));
	for (int n = 0; n < COUNT; n++)
		MUST0(pthread_join(threads[n], NULL));
	wl_ok();
}
