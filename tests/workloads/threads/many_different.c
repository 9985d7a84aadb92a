// peer: no, CRIU 4.2 knows no timer slack
/*
 * Forty threads, so many that they are not asked one by one, each different from its neighbours: names, alternate stacks of
 * every kind, timer slack, parent's death signals, addresses for their end; a few with credentials, seccomp filters or
 * no_new_privs of their own.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>

#include "status.h"

#define COUNT 40
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

struct state {
	char comm[16], status[2048];
	stack_t stack;
	long slack, seccomp;
	int pdeath, *tid_address;
};

static pthread_barrier_t begun;
static volatile bool go;

/* What the thread can see of itself. */
static struct state look(void)
{
	static const char *const fields[] = { ABOUT_CREDENTIALS, "\nNoNewPrivs:", "\nSeccomp:", "\nSeccomp_filters:", NULL };
	struct state now;

	memset(&now, 0, sizeof(now));
	status_lines(now.status, sizeof(now.status), fields);
	MUST(prctl(PR_GET_NAME, now.comm));
	MUST(sigaltstack(NULL, &now.stack));
	now.slack = MUST(prctl(PR_GET_TIMERSLACK));
	now.seccomp = MUST(prctl(PR_GET_SECCOMP));
	MUST(prctl(PR_GET_PDEATHSIG, &now.pdeath));
	MUST(prctl(PR_GET_TID_ADDRESS, &now.tid_address));
	return now;
}

static void differ(int number)
{
	struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { 1, &all };
	char name[32];
	stack_t stack = { .ss_sp = MUST(mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
			  .ss_size = 8192 + 4096 * (number % 3) };

	/* None, the shortest and the longest among them. */
	snprintf(name, sizeof(name), "%.*s", number % 16, "fifteen letters");
	if (number != 16)
		name[0] = name[0] ? 'a' + number % 26 : 0;
	MUST(prctl(PR_SET_NAME, name));
	if (number % 4 == 1)
		stack.ss_flags = SS_DISABLE;
	if (number % 4 == 2)
		stack.ss_flags = SS_AUTODISARM;
	MUST(sigaltstack(&stack, NULL));
	MUST(prctl(PR_SET_TIMERSLACK, 1000 + number));
	/* The parent may end: none of these does anything. */
	MUST(prctl(PR_SET_PDEATHSIG, (int[]){ 0, SIGURG, SIGWINCH, SIGCHLD }[number % 4]));
	if (number == 7)
		MUST(syscall(SYS_set_tid_address, NULL));
	if (number == 11)
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (number == 12)
		MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
	if (number == 20)
		MUST(syscall(SYS_setresgid, 100, 200, 300));
	if (number == 21)
		MUST(syscall(SYS_setresuid, 1000, 1001, 0));
}

static void *one(void *argument)
{
	int number = (long)argument;
	struct state before, now;

	differ(number);
	before = look();
	pthread_barrier_wait(&begun);
	while (!go)
		wl_sleep_ms(2);
	if (wl_lose && number == 30)
		MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	now = look();
	CHECK(strcmp(now.status, before.status) == 0, "thread %d had%s\nhas%s", number, before.status, now.status);
	CHECK(strcmp(now.comm, before.comm) == 0, "thread %d was %s, is %s", number, before.comm, now.comm);
	CHECK(now.stack.ss_sp == before.stack.ss_sp && now.stack.ss_size == before.stack.ss_size, "thread %d has another stack", number);
	CHECK(now.stack.ss_flags == before.stack.ss_flags, "thread %d: flags of the stack were %x, are %x", number,
	      before.stack.ss_flags, now.stack.ss_flags);
	CHECK(now.slack == before.slack && now.seccomp == before.seccomp, "thread %d: slack or seccomp differ", number);
	CHECK(now.pdeath == before.pdeath, "thread %d: the signal was %d, is %d", number, before.pdeath, now.pdeath);
	CHECK(now.tid_address == before.tid_address, "thread %d had %p, has %p", number, before.tid_address, now.tid_address);
	pthread_barrier_wait(&begun);
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
	/* Not joined: one tells nobody of its end. */
	pthread_barrier_wait(&begun);
	wl_ok();
}
