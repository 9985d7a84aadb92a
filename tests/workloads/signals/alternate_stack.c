/* Alternate signal stacks: of the process and of a thread, disabled ones, with SS_AUTODISARM. */
#include <pthread.h>

#include "workload.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

static uint8_t areas[3][65536];
static volatile uintptr_t seen_on;
static volatile bool go;
static volatile int begun;

static void handler(int signal)
{
	(void)signal;
	seen_on = (uintptr_t)__builtin_frame_address(0);
}

static void set(int number, unsigned flags)
{
	stack_t stack = { .ss_sp = areas[number], .ss_size = sizeof(areas[0]) - number * 4096, .ss_flags = flags };

	MUST(sigaltstack(&stack, NULL));
}

static void verify(int number, unsigned flags)
{
	stack_t now;

	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_sp == areas[number] && now.ss_size == sizeof(areas[0]) - number * 4096 && (unsigned)now.ss_flags == flags,
	      "stack %d: at %p of %zu with flags %#x, should be at %p with %#x", number, now.ss_sp, now.ss_size, now.ss_flags, areas[number], flags);
	seen_on = 0;
	raise(SIGUSR1);
	CHECK(seen_on - (uintptr_t)areas[number] < sizeof(areas[0]), "the handler ran at %#lx, not on stack %d", seen_on, number);
}

static void *with_own(void *unused)
{
	(void)unused;
	set(1, SS_AUTODISARM);
	begun++;
	while (!go)
		wl_sleep_ms(2);
	verify(1, SS_AUTODISARM);
	return NULL;
}

static void *without(void *unused)
{
	stack_t now;

	(void)unused;
	begun++;
	while (!go)
		wl_sleep_ms(2);
	MUST(sigaltstack(NULL, &now));
	CHECK(now.ss_flags == SS_DISABLE, "a thread without alternate stack has flags %#x", now.ss_flags);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	pthread_t threads[2];

	wl_init(argc, argv);
	MUST(sigaction(SIGUSR1, &action, NULL));
	set(0, 0);
	MUST0(pthread_create(&threads[0], NULL, with_own, NULL));
	MUST0(pthread_create(&threads[1], NULL, without, NULL));
	WAIT_FOR(begun == 2, "the threads do not start");

	wl_ready();
	if (wl_lose)
		set(2, 0);
	verify(0, 0);
	go = true;
	MUST0(pthread_join(threads[0], NULL));
	MUST0(pthread_join(threads[1], NULL));
	wl_ok();
}
