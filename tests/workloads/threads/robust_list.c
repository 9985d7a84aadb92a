/* Robust mutexes: a thread and a child that die while they hold one leave it to be recovered. */
#include <linux/futex.h>
#include <pthread.h>

#include "workload.h"

struct shared {
	pthread_mutex_t of_thread, of_child;
};

static struct shared *shared;
static volatile bool go;
static volatile int held;
static void *head_before;

static void make_robust(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attributes;

	MUST0(pthread_mutexattr_init(&attributes));
	MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	MUST0(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
	MUST0(pthread_mutex_init(mutex, &attributes));
}

static void *die_holding(void *unused)
{
	size_t length;
	void *head;

	(void)unused;
	MUST0(pthread_mutex_lock(&shared->of_thread));
	MUST(syscall(SYS_get_robust_list, 0, &head_before, &length));
	held = 1;
	while (!go)
		wl_sleep_ms(2);
	MUST(syscall(SYS_get_robust_list, 0, &head, &length));
	CHECK(head == head_before && length == sizeof(struct robust_list_head), "the robust list was at %p, is at %p of %zu bytes", head_before, head,
	      length);
	if (wl_lose)
		MUST(syscall(SYS_set_robust_list, malloc(sizeof(struct robust_list_head)), sizeof(struct robust_list_head)));
	syscall(SYS_exit, 0);
	return NULL;
}

int main(int argc, char **argv)
{
	struct timespec limit;
	pthread_t thread;
	pid_t child;
	int error;

	wl_init(argc, argv);
	shared = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	make_robust(&shared->of_thread);
	make_robust(&shared->of_child);
	child = wl_fork();
	if (child == 0) {
		MUST0(pthread_mutex_lock(&shared->of_child));
		wl_child_ready();
		wl_wait();
		_exit(0);
	}
	MUST0(pthread_create(&thread, NULL, die_holding, NULL));
	WAIT_FOR(held, "the thread does not take its mutex");

	wl_ready();
	CHECK(pthread_mutex_trylock(&shared->of_thread) == EBUSY, "the thread's mutex is free");
	go = true;
	MUST(clock_gettime(CLOCK_REALTIME, &limit));
	limit.tv_sec += 2;
	error = pthread_mutex_timedlock(&shared->of_thread, &limit);
	CHECK(error == EOWNERDEAD, "the mutex of the dead thread: %s", strerror(error));
	wl_join(child);
	error = pthread_mutex_timedlock(&shared->of_child, &limit);
	CHECK(error == EOWNERDEAD, "the mutex of the dead child: %s", strerror(error));
	wl_ok();
}
