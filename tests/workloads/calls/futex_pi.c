/* A wait for a priority-inheritance mutex, which the kernel hands over when its owner lets go. */
#include "blocked.h"

static pthread_mutex_t mutex;

static long call(void)
{
	return pthread_mutex_lock(&mutex);
}

static void release(void)
{
	MUST0(pthread_mutex_unlock(&mutex));
}

/* Another mutex in the place of the one that the thread waits for. */
static void lose(void)
{
	pthread_mutexattr_t attributes;

	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK));
	MUST0(pthread_mutex_init(&mutex, &attributes));
}

int main(int argc, char **argv)
{
	pthread_mutexattr_t attributes;

	wl_init(argc, argv);
	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT));
	MUST0(pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK));
	MUST0(pthread_mutex_init(&mutex, &attributes));
	MUST0(pthread_mutex_lock(&mutex));
	blocked_main((struct blocked_call){ .number = SYS_futex, .call = call, .release = release, .result = 0, .lose = lose });
}
