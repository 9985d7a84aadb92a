/* Sixty threads, each with its own thread-local data and stack, asleep on one condition variable; all can be joined. */
#include <pthread.h>
#include <sys/prctl.h>

#include "workload.h"

#define COUNT 60

static __thread uint8_t local[3000];
static __thread pid_t own_tid;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t begun;
static bool released;
static int passed;

static void *one(void *argument)
{
	unsigned seed = (unsigned long)argument;
	uint8_t frame[5000];

	wl_fill(local, sizeof(local), seed);
	wl_fill(frame, sizeof(frame), seed + 1000);
	own_tid = wl_gettid();
	pthread_barrier_wait(&begun);
	pthread_mutex_lock(&mutex);
	while (!released)
		pthread_cond_wait(&condition, &mutex);
	if (wl_lose && seed == 40)
		local[2999] ^= 1;
	CHECK(wl_differs(local, sizeof(local), seed) < 0, "thread %u: its thread-local data differ", seed);
	CHECK(wl_differs(frame, sizeof(frame), seed + 1000) < 0, "thread %u: its stack differs", seed);
	CHECK(own_tid == wl_gettid(), "thread %u was %d, is %d", seed, own_tid, wl_gettid());
	passed++;
	pthread_mutex_unlock(&mutex);
	return (void *)(unsigned long)(seed * 3);
}

int main(int argc, char **argv)
{
	pthread_t threads[COUNT];
	void *result;

	wl_init(argc, argv);
	MUST0(pthread_barrier_init(&begun, NULL, COUNT + 1));
	for (unsigned long i = 0; i < COUNT; i++)
		MUST0(pthread_create(&threads[i], NULL, one, (void *)i));
	pthread_barrier_wait(&begun);

	wl_ready();
	pthread_mutex_lock(&mutex);
	released = true;
	pthread_cond_broadcast(&condition);
	pthread_mutex_unlock(&mutex);
	/* A join returns once the kernel has cleared the thread id at the address that the thread registered. */
	for (unsigned long i = 0; i < COUNT; i++) {
		MUST0(pthread_join(threads[i], &result));
		CHECK(result == (void *)(i * 3), "thread %lu returned %p", i, result);
	}
	CHECK(passed == COUNT, "%d threads of %d passed", passed, COUNT);
	wl_ok();
}
