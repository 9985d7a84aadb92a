/* The FS and GS bases of two threads; FS by thread-local data, GS by an address of the program's own. */
#include <asm/prctl.h>
#include <pthread.h>

#include "workload.h"

static uint64_t areas[2][8] = { { 1111 }, { 2222 } };
static __thread int local;
static pthread_barrier_t begun;
static volatile bool go;

static uint64_t by_gs(void)
{
	uint64_t value;

	__asm__ volatile("movq %%gs:0, %0" : "=r"(value));
	return value;
}

static void *one(void *argument)
{
	int number = (long)argument;
	unsigned long base;

	local = number + 50;
	MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, areas[number]));
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	if (wl_lose && number == 1)
		MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, areas[0]));
	CHECK(local == number + 50, "thread %d: its thread-local value is %d", number, local);
	MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
	CHECK(base == (unsigned long)areas[number], "thread %d: the GS base is %#lx", number, base);
	CHECK(by_gs() == areas[number][0], "thread %d: through GS it reads %lu", number, by_gs());
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];

	wl_init(argc, argv);
	MUST0(pthread_barrier_init(&begun, NULL, 3));
	for (long i = 0; i < 2; i++)
		MUST0(pthread_create(&threads[i], NULL, one, (void *)i));
	pthread_barrier_wait(&begun);
	wl_ready();
	go = true;
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_ok();
}
