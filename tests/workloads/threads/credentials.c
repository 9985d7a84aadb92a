/* Threads with credentials of their own, set by the bare system calls: ids, groups, capabilities. */
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>

#include "status.h"

#define COUNT 3

static pthread_barrier_t begun;
static volatile bool go;
static char before[COUNT][2048];

static void describe(char *text, size_t size)
{
	static const char *const fields[] = { ABOUT_CREDENTIALS, NULL };

	status_lines(text, size, fields);
}

static void *one(void *argument)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2];
	int number = (long)argument;
	gid_t groups[] = { 500 + number, 600 };
	char now[2048];

	MUST(syscall(SYS_capget, &header, caps));
	MUST(syscall(SYS_setgroups, 2, groups));
	MUST(syscall(SYS_setresgid, 100 + number, 200 + number, 300 + number));
	if (number == 1) {
		caps[0].effective &= ~(1u << CAP_CHOWN);
		caps[0].inheritable = 1u << CAP_KILL;
		MUST(syscall(SYS_capset, &header, caps));
	}
	if (number == 2)
		MUST(syscall(SYS_setresuid, 1000, 1001, 0));
	describe(before[number], sizeof(before[number]));
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	if (wl_lose && number == 1)
		MUST(syscall(SYS_setresgid, 0, 0, 0));
	describe(now, sizeof(now));
	CHECK(strcmp(now, before[number]) == 0, "thread %d had%s\nhas%s", number, before[number], now);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[COUNT];

	wl_init(argc, argv);
	MUST0(pthread_barrier_init(&begun, NULL, COUNT + 1));
	for (long i = 0; i < COUNT; i++)
		MUST0(pthread_create(&threads[i], NULL, one, (void *)i));
	pthread_barrier_wait(&begun);
	wl_ready();
	go = true;
	for (int i = 0; i < COUNT; i++)
		MUST0(pthread_join(threads[i], NULL));
	CHECK(getuid() == 0 && getgid() == 0, "the main thread's ids are %d and %d", getuid(), getgid());
	wl_ok();
}
