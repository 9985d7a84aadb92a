// peer: no, CRIU 4.2 cannot seize a leader that has exited
// differs: mapping content.*, the kernel writes what is left of the nap in which the threads were stopped
/* A child whose first thread has exited is stopped by job control, and goes on after SIGCONT. */
#include <pthread.h>

#include "workload.h"

static volatile long *counters;

static void *count(void *argument)
{
	volatile long *counter = argument;

	for (;;) {
		++*counter;
		wl_sleep_ms(1);
	}
	return NULL;
}

static void be_stopped(void)
{
	pthread_t thread;

	MUST0(pthread_create(&thread, NULL, count, (void *)&counters[0]));
	MUST0(pthread_create(&thread, NULL, count, (void *)&counters[1]));
	syscall(SYS_exit, 6);
}

int main(int argc, char **argv)
{
	char path[64], text[32];
	siginfo_t info;
	long before[2];
	pid_t child;
	int status;

	wl_init(argc, argv);
	counters = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	child = MUST(fork());
	if (child == 0)
		be_stopped();
	WAIT_FOR(counters[0] && counters[1] && wl_task_state(child) == 'Z', "the child does not get ready");
	MUST(kill(child, SIGSTOP));
	memset(&info, 0, sizeof(info));
	WAIT_FOR(waitid(P_PID, child, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid == child, "the child does not stop");
	before[0] = counters[0];
	before[1] = counters[1];

	wl_ready();
	if (wl_lose)
		MUST(kill(child, SIGCONT));
	wl_sleep_ms(30);
	CHECK(counters[0] == before[0] && counters[1] == before[1], "a stopped child went on");
	CHECK(wl_task_state(child) == 'Z', "its first thread's state is %c", wl_task_state(child));
	memset(&info, 0, sizeof(info));
	MUST(waitid(P_PID, child, &info, WSTOPPED | WNOHANG | WNOWAIT));
	CHECK(info.si_pid == child && info.si_status == SIGSTOP, "the stop: pid %d signal %d", info.si_pid, info.si_status);
	MUST(kill(child, SIGCONT));
	WAIT_FOR(counters[0] > before[0] && counters[1] > before[1], "it does not go on after SIGCONT");
	MUST(kill(child, SIGKILL));
	while (waitpid(child, &status, 0) == child && !WIFSIGNALED(status))
		;
	snprintf(path, sizeof(path), "/proc/%d", child);
	snprintf(text, sizeof(text), "%#x", status);
	CHECK(status == SIGKILL && access(path, F_OK) < 0, "it ended with %s", text);
	wl_ok();
}
