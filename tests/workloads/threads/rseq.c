/* Restartable sequences: glibc registers an area per thread, in which the kernel keeps the processor's number. */
#include <pthread.h>
#include <sched.h>
#include <sys/rseq.h>

#include "workload.h"

static volatile bool go;
static volatile int begun;

static volatile struct rseq *area(void)
{
	return (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* Moves to each of two processors: only a registered area follows. */
static void verify(const char *who)
{
	cpu_set_t set, old;

	MUST(sched_getaffinity(0, sizeof(old), &old));
	for (int round = 0; round < 4; round++) {
		int wanted = -1;

		for (int cpu = 0, nth = 0; cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, &old) && nth++ <= round % 2)
				wanted = cpu;
		CPU_ZERO(&set);
		CPU_SET(wanted, &set);
		MUST(sched_setaffinity(0, sizeof(set), &set));
		CHECK((int)area()->cpu_id == wanted, "%s runs on processor %d, its rseq area says %d", who, wanted, (int)area()->cpu_id);
		CHECK((int)area()->cpu_id_start == wanted, "%s: cpu_id_start is %d", who, (int)area()->cpu_id_start);
	}
	MUST(sched_setaffinity(0, sizeof(old), &old));
}

static void *one(void *unused)
{
	(void)unused;
	begun = 1;
	while (!go)
		wl_sleep_ms(2);
	verify("the thread");
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	wl_init(argc, argv);
	CHECK(__rseq_size > 0, "glibc has not registered an rseq area");
	MUST0(pthread_create(&thread, NULL, one, NULL));
	WAIT_FOR(begun, "the thread does not start");
	verify("the process");

	wl_ready();
	if (wl_lose)
		MUST(syscall(SYS_rseq, area(), 32, 1 /* RSEQ_FLAG_UNREGISTER */, RSEQ_SIG));
	verify("the process");
	go = true;
	MUST0(pthread_join(thread, NULL));
	CHECK(syscall(SYS_rseq, area(), 32, 0, RSEQ_SIG) < 0 && errno == EBUSY, "the area can be registered a second time");
	wl_ok();
}
