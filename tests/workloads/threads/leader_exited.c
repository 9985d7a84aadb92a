// peer: no, CRIU 4.2 cannot seize a leader that has exited
/*
 * A process whose first thread has exited while two others go on: the leader is a zombie until the last thread ends, with
 * its name, its niceness and its exit code. The others have everything: memory, descriptors, signals, timers.
 */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "workload.h"

#define SIZE (256 << 10)
#define STATUS 5

static __thread int local;
static pthread_barrier_t begun, ended;
static pthread_t other;
static pid_t other_tid;
static uint8_t *memory;
static int file, pipes[2];
static timer_t timer;
static volatile sig_atomic_t caught;
/* Of the leader, and of others. */
static int niceness, usual;

static void catch(int number)
{
	(void)number;
	caught++;
}

static void *second(void *unused)
{
	(void)unused;
	local = 18;
	other_tid = wl_gettid();
	pthread_barrier_wait(&begun);
	pthread_barrier_wait(&ended);
	CHECK(local == 18, "the second thread's local value is %d", local);
	return (void *)19;
}

/* A field of the leader's stat, counted from that behind the name, which is 0. */
static long field(int number)
{
	char path[64], text[512], *at;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", getpid(), getpid());
	wl_read_file(path, text, sizeof(text));
	at = strrchr(text, ')') + 1;
	for (int i = 0; i < number; i++)
		at = strchr(at + 1, ' ');
	return strtol(at, NULL, 10);
}

static void set_up(void)
{
	struct sigaction action = { .sa_handler = catch };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec late = { .it_value.tv_sec = 1000 };
	sigset_t blocked;

	MUST(sigaction(SIGUSR1, &action, NULL));
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigaddset(&blocked, SIGRTMIN);
	MUST0(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
	memory = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	wl_fill(memory, SIZE, 1);
	file = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0666));
	MUST(write(file, "0123456789", 10));
	MUST(lseek(file, 4, SEEK_SET));
	MUST(pipe(pipes));
	MUST(write(pipes[1], "piped", 5));
	MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
	MUST(timer_settime(timer, 0, &late, NULL));
}

static void check(void)
{
	struct itimerspec left;
	char text[64], path[64];
	siginfo_t info;
	sigset_t set;
	void *result;

	CHECK(wl_task_state(getpid()) == 'Z', "the leader's state is %c", wl_task_state(getpid()));
	CHECK(wl_gettid() != getpid(), "the thread has become the leader");
	snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", getpid(), getpid());
	wl_read_file(path, text, sizeof(text));
	CHECK(strcmp(text, "the first\n") == 0, "the leader's name is %s", text);
	CHECK(field(49) == STATUS << 8, "the leader's exit code is %#lx", field(49));
	CHECK(field(16) == niceness, "the leader's niceness is %ld", field(16));
	CHECK(getpriority(PRIO_PROCESS, wl_gettid()) == usual, "another thread's niceness is another");
	CHECK(local == 17, "the thread-local value is %d", local);
	CHECK(wl_differs(memory, SIZE, 1) < 0, "memory differs");
	CHECK(read(file, text, 3) == 3 && memcmp(text, "456", 3) == 0, "the file goes on elsewhere");
	CHECK(read(pipes[0], text, sizeof(text)) == 5 && memcmp(text, "piped", 5) == 0, "the pipe has lost its data");
	MUST(timer_gettime(timer, &left));
	CHECK(left.it_value.tv_sec > 900, "the timer has %ld s left", (long)left.it_value.tv_sec);
	MUST(kill(getpid(), SIGUSR1));
	WAIT_FOR(caught == 1, "nobody has caught the signal");
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(sigtimedwait(&set, &info, &(struct timespec){ 0 }) == SIGUSR2, "the process's signal is gone");
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	CHECK(sigtimedwait(&set, &info, &(struct timespec){ 0 }) == SIGRTMIN, "the thread's signal is gone");
	CHECK(info.si_value.sival_int == 77, "the thread's signal says %d", info.si_value.sival_int);
	pthread_barrier_wait(&ended);
	MUST0(pthread_join(other, &result));
	CHECK(result == (void *)19, "the second thread returned %p", result);
}

static void *rest(void *unused)
{
	(void)unused;
	local = 17;
	pthread_barrier_wait(&begun);
	WAIT_FOR(wl_task_state(getpid()) == 'Z', "the first thread does not end");
	MUST(kill(getpid(), SIGUSR2));
	MUST0(pthread_sigqueue(pthread_self(), SIGRTMIN, (union sigval){ .sival_int = 77 }));
	wl_ready();
	if (wl_lose)
		local = 0;
	check();
	wl_ok();
}

int main(int argc, char **argv)
{
	pthread_t thread;

	wl_init(argc, argv);
	set_up();
	usual = getpriority(PRIO_PROCESS, 0);
	niceness = usual == 3 ? 4 : 3;
	MUST0(pthread_barrier_init(&begun, NULL, 3));
	MUST0(pthread_barrier_init(&ended, NULL, 2));
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	MUST0(pthread_create(&other, NULL, second, NULL));
	MUST(prctl(PR_SET_NAME, "the first"));
	pthread_barrier_wait(&begun);
	MUST(setpriority(PRIO_PROCESS, wl_gettid(), niceness));
	syscall(SYS_exit, STATUS);
}
