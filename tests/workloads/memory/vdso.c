/* The vdso: clocks read through it before, while and after; it is where the program found it. */
#include <elf.h>
#include <pthread.h>
#include <sys/auxv.h>

#include "workload.h"

static volatile bool stop;
static volatile long calls, steps_back;

/* Most likely frozen inside the vdso's own code. */
static void *read_clocks(void *unused)
{
	struct timespec last = { 0 }, now;

	(void)unused;
	while (!stop) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec < last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec))
			steps_back++;
		last = now;
		calls++;
	}
	return NULL;
}

static long by_system_call(clockid_t clock)
{
	struct timespec now;

	MUST(syscall(SYS_clock_gettime, clock, &now));
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME };
	const uint8_t *vdso = (const uint8_t *)getauxval(AT_SYSINFO_EHDR);
	pthread_t thread;
	long before;

	wl_init(argc, argv);
	CHECK(vdso, "there is no vdso");
	MUST0(pthread_create(&thread, NULL, read_clocks, NULL));
	wl_ready();

	before = calls;
	WAIT_FOR(calls > before + 1000, "the thread that reads clocks does not go on");
	stop = true;
	MUST0(pthread_join(thread, NULL));
	if (wl_lose)
		steps_back++;
	CHECK(steps_back == 0, "the monotonic clock stepped back %ld times", steps_back);
	CHECK(memcmp(vdso, ELFMAG, SELFMAG) == 0, "no ELF image at the vdso's address any more");
	for (size_t i = 0; i < sizeof(clocks) / sizeof(clocks[0]); i++) {
		long by_vdso = wl_now_ms(clocks[i]), real = by_system_call(clocks[i]);

		CHECK(labs(real - by_vdso) < 500, "clock %d: the vdso says %ld ms, the kernel %ld ms", clocks[i], by_vdso, real);
	}
	CHECK(labs(time(NULL) - by_system_call(CLOCK_REALTIME) / 1000) <= 1, "time() is off");
	wl_ok();
}
