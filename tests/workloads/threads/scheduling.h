/* Two threads that set something of their own, and must find it unchanged; the main thread must not have it. */
#ifndef SCHEDULING_H
#define SCHEDULING_H

#include <pthread.h>

#include "workload.h"

struct own_setting {
	/* Sets the thread's value for a number (1 or 2), or with 0 something else. */
	void (*set)(int number);
	/* Writes the calling thread's value down. */
	void (*describe)(char *text, size_t size);
};

static struct own_setting own_setting;
static pthread_barrier_t own_begun;
static volatile bool own_go;
/* Threads that nap: until then they are on their way, and their stacks change. */
static _Atomic int own_napping;

static void *own_thread(void *argument)
{
	int number = (long)argument;
	char before[256], now[256];

	own_setting.set(number);
	own_setting.describe(before, sizeof(before));
	pthread_barrier_wait(&own_begun);
	for (bool first = true; !own_go; first = false) {
		wl_nap();
		own_napping += first;
	}
	if (wl_lose && number == 2)
		own_setting.set(0);
	own_setting.describe(now, sizeof(now));
	CHECK(strcmp(before, now) == 0, "thread %d had '%s', has '%s'", number, before, now);
	return NULL;
}

__attribute__((noreturn)) static void own_main(int argc, char **argv, struct own_setting setting)
{
	char before[256], now[256];
	pthread_t threads[2];

	wl_init(argc, argv);
	own_setting = setting;
	MUST0(pthread_barrier_init(&own_begun, NULL, 3));
	setting.describe(before, sizeof(before));
	for (long i = 0; i < 2; i++)
		MUST0(pthread_create(&threads[i], NULL, own_thread, (void *)(i + 1)));
	pthread_barrier_wait(&own_begun);
	while (own_napping < 2)
		wl_nap();
	wl_ready();
	setting.describe(now, sizeof(now));
	CHECK(strcmp(before, now) == 0, "the main thread had '%s', has '%s'", before, now);
	own_go = true;
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_ok();
}

#endif
