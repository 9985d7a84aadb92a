/* Seccomp filters: one for all threads, one more of a single thread; each answers certain calls with its own errno. */
#include <pthread.h>
#include <sys/prctl.h>

#include "filters.h"

static pthread_barrier_t begun;
static volatile bool go;

static int filters(void)
{
	char status[8192], *line;

	wl_read_file("/proc/thread-self/status", status, sizeof(status));
	line = strstr(status, "\nSeccomp_filters:");
	return line ? atoi(line + 17) : -1;
}

static void *one(void *unused)
{
	(void)unused;
	forbid(SYS_getuid, 45, 0);
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	CHECK(syscall(SYS_getuid) == -1 && errno == 45, "the thread's own filter is gone");
	CHECK(syscall(SYS_getgid) == -1 && errno == 44, "the filter of all threads is gone from the thread");
	CHECK(prctl(PR_GET_SECCOMP) == 2 && filters() == 2, "the thread's seccomp mode is %d, with %d filters", prctl(PR_GET_SECCOMP), filters());
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	pid_t child;

	wl_init(argc, argv);
	MUST0(pthread_barrier_init(&begun, NULL, 2));
	child = wl_fork_waiting();
	if (child == 0) {
		CHECK(syscall(SYS_getgid) == 0 && prctl(PR_GET_SECCOMP) == 0, "a process without filter has one now");
		_exit(0);
	}
	forbid(SYS_getgid, 44, 0);
	MUST0(pthread_create(&thread, NULL, one, NULL));
	pthread_barrier_wait(&begun);

	wl_ready();
	if (wl_lose)
		forbid(SYS_getgid, 1, 0);
	CHECK(syscall(SYS_getgid) == -1 && errno == 44, "the filter does not answer with its errno");
	CHECK(syscall(SYS_getuid) == 0, "the thread's filter is the main thread's as well");
	CHECK(prctl(PR_GET_SECCOMP) == 2, "the seccomp mode is %d", prctl(PR_GET_SECCOMP));
	CHECK(filters() == 1, "there are %d filters", filters());
	go = true;
	MUST0(pthread_join(thread, NULL));
	wl_join(child);
	wl_ok();
}
