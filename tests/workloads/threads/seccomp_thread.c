/* A seccomp filter that only a thread has, not the first one; it forbids what a checkpoint asks. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "workload.h"

static pthread_barrier_t begun;
static volatile bool go;

static void forbid_prctl(int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static void *one(void *unused)
{
	(void)unused;
	forbid_prctl(46);
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
		forbid_prctl(1);
	CHECK(prctl(PR_GET_SECCOMP) == 0, "the first thread has a filter now");
	go = true;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
