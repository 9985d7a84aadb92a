/* A seccomp filter that only a thread has, not the first one; it forbids what a checkpoint asks. */
#include <pthread.h>
#include <sys/prctl.h>

#include "filters.h"

static pthread_barrier_t begun;
static volatile bool go;

static void *one(void *unused)
{
	(void)unused;
	forbid(SYS_prctl, 46, 0);
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	CHECK(prctl(PR_GET_NAME, 0) == -1 && errno == 46, "the thread's filter is gone");
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_barrier_init(&begun, NULL, 2));
	MUST0(pthread_create(&thread, NULL, one, NULL));
	pthread_barrier_wait(&begun);

	wl_ready();
	if (wl_lose)
		forbid(SYS_prctl, 1, 0);
	CHECK(prctl(PR_GET_SECCOMP) == 0, "the first thread has a filter now");
	go = true;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
