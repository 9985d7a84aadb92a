// peer: no, CRIU 4.2 gives threads of different filters theirs apart
/*
 * Threads that share their filters: one can give them all another (SECCOMP_FILTER_FLAG_TSYNC), which the kernel does only
 * where nobody has gone his own way. One of them has a filter more, and the process other credentials.
 */
#include <pthread.h>
#include <sys/prctl.h>

#include "filters.h"

static pthread_barrier_t begun;
static volatile bool go;

static void *one(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	CHECK(syscall(SYS_getppid) == -1 && errno == 41, "the first filter of a thread is gone");
	CHECK(syscall(SYS_getpgid, 0) == -1 && errno == 42, "the second filter of a thread is gone");
	CHECK(syscall(SYS_ptrace, 0) == -1 && errno == 43, "the filter for all is not with a thread");
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[3];
	long who;

	wl_init(argc, argv);
	MUST0(pthread_barrier_init(&begun, NULL, 4));
	forbid(SYS_getppid, 41, 0);
	forbid(SYS_getpgid, 42, 0);
	for (int i = 0; i < 3; i++)
		MUST0(pthread_create(&threads[i], NULL, one, NULL));
	/* The first thread is ahead of the others, which the kernel allows. */
	forbid(SYS_getpriority, 44, 0);
	pthread_barrier_wait(&begun);

	wl_ready();
	if (wl_lose) {
		/* Nobody gives them the filter. */
		go = true;
		for (int i = 0; i < 3; i++)
			MUST0(pthread_join(threads[i], NULL));
	}
	CHECK((who = forbid(SYS_ptrace, 43, SECCOMP_FILTER_FLAG_TSYNC)) == 0, "thread %ld shares no filters with the first", who);
	CHECK(syscall(SYS_getpriority, 0, 0) == -1 && errno == 44, "the third filter of the first thread is gone");
	go = true;
	for (int i = 0; i < 3; i++)
		MUST0(pthread_join(threads[i], NULL));
	wl_ok();
}
