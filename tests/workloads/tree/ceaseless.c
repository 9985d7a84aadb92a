// differs: thread *, its threads never rest
// differs: process *, its threads never rest
// differs: mapping *, its threads never rest
/* Processes of several threads each that never rest: one passes numbers round the ring of processes, one computes in
 * vector registers, one sleeps. Whoever is left alone, or loses a number or a bit, says so. */
#include <pthread.h>
#include <stdatomic.h>

#include "workload.h"

#define PROCESSES 4

static int ring[PROCESSES][2];
static int place;
static atomic_bool over;
static atomic_long rounds, computed;

/* Passes the number on, one more each time; the root says when to stop by a negative one. */
static void *passes(void *unused WL_UNUSED)
{
	int in = ring[place][0], out = ring[(place + 1) % PROCESSES][1];
	long number = 0, last = -1;
	ssize_t got;

	if (place == 0)
		MUST(write(out, &number, sizeof(number)));
	for (;;) {
		do
			got = read(in, &number, sizeof(number));
		while (got < 0 && errno == EINTR);
		CHECK(got == sizeof(number), "process %d: its neighbour is gone (%zd, %s)", place, got, got < 0 ? strerror(errno) : "end");
		CHECK(number < 0 || place != 0 || number == last + PROCESSES || last < 0, "the number was %ld, is %ld", last, number);
		last = number;
		atomic_fetch_add(&rounds, 1);
		if (place == 0 && number >= 0 && atomic_load(&over))
			number = -1;
		else if (number >= 0)
			number++;
		else if (place == 0)
			break;
		MUST(write(out, &number, sizeof(number)));
		if (number < 0 && place != 0)
			break;
	}
	atomic_store(&over, true);
	return NULL;
}

/* The registers are full all the time and nothing but this loop may change them. */
static void *computes(void *unused WL_UNUSED)
{
	uint64_t start[2] = { 0x0123456789abcdefUL, 0xfedcba9876543210UL }, end[2];

	while (!atomic_load(&over)) {
		long turns = 20000;

		__asm__ volatile("movdqu (%[start]), %%xmm0\n"
				 "movdqa %%xmm0, %%xmm7\n"
				 "movdqa %%xmm0, %%xmm15\n"
				 "1: paddq %%xmm7, %%xmm0\n"
				 "psubq %%xmm15, %%xmm0\n"
				 "dec %[turns]\n"
				 "jnz 1b\n"
				 "movdqu %%xmm0, (%[end])\n"
				 : [turns] "+&r"(turns)
				 : [start] "r"(start), [end] "r"(end)
				 : "xmm0", "xmm7", "xmm15", "memory");
		if (wl_lose && wl_told_to_go())
			end[0] ^= 1;
		CHECK(end[0] == start[0] && end[1] == start[1], "process %d: vector registers differ: %#lx %#lx", place, end[0], end[1]);
		CHECK(turns == 0, "process %d: a register differs: %ld", place, turns);
		atomic_fetch_add(&computed, 1);
	}
	return NULL;
}

static void *sleeps(void *unused WL_UNUSED)
{
	while (!atomic_load(&over))
		wl_sleep_ms(3);
	return NULL;
}

static void whole_process(bool root)
{
	pthread_t threads[3];
	/* Once a number goes round, all threads are there. */
	static void *(*const kinds[3])(void *) = { computes, sleeps, passes };

	for (int i = 0; i < PROCESSES; i++) {
		if (i != place)
			close(ring[i][0]);
		if (i != (place + 1) % PROCESSES)
			close(ring[i][1]);
	}
	for (int i = 0; i < 3; i++)
		MUST0(pthread_create(&threads[i], NULL, kinds[i], NULL));
	if (root) {
		WAIT_FOR(atomic_load(&rounds) > 3 && atomic_load(&computed) > 3, "nothing moves");
		wl_ready();
		if (wl_lose)
			wl_sleep_ms(10);
		atomic_store(&over, true);
	}
	for (int i = 0; i < 3; i++)
		MUST0(pthread_join(threads[i], NULL));
}

int main(int argc, char **argv)
{
	pid_t children[PROCESSES];

	wl_init(argc, argv);
	MUST(signal(SIGPIPE, SIG_IGN) == SIG_ERR ? -1 : 0);
	for (int i = 0; i < PROCESSES; i++)
		MUST(pipe(ring[i]));
	for (int i = 1; i < PROCESSES; i++) {
		children[i] = MUST(fork());
		if (children[i] == 0) {
			place = i;
			whole_process(false);
			_exit(0);
		}
	}
	whole_process(true);
	for (int i = 1; i < PROCESSES; i++)
		wl_join(children[i]);
	wl_ok();
}
