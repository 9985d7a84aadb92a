// differs: mapping *, it makes and ends threads all the time
// differs: thread *, it makes and ends threads all the time
/* Threads that come and go all the time: whatever the moment of the freeze, none is lost and none is double. */
#include <pthread.h>

#include "workload.h"

static volatile bool stop;
static volatile long begun, ended;

static void *brief(void *unused)
{
	(void)unused;
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	usleep(100);
	__atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *create(void *unused)
{
	pthread_t threads[8];

	(void)unused;
	while (!stop) {
		for (int i = 0; i < 8; i++)
			MUST0(pthread_create(&threads[i], NULL, brief, NULL));
		for (int i = 0; i < 8; i++)
			MUST0(pthread_join(threads[i], NULL));
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t creator;
	long before;

	wl_init(argc, argv);
	MUST0(pthread_create(&creator, NULL, create, NULL));
	wl_ready();
	before = ended;
	WAIT_FOR(ended > before + 20, "no more threads come");
	stop = true;
	MUST0(pthread_join(creator, NULL));
	if (wl_lose)
		ended--;
	CHECK(begun == ended, "%ld threads began, %ld ended", begun, ended);
	wl_ok();
}
