// differs: process stat.exit_code, a stop that the parent has been told of waits to be told a second time
// differs: mapping content.*, the kernel writes what is left of the nap in which a child was stopped
/* Stopped children stay stopped: one whose stop has been reported, one whose stop has not; SIGCONT wakes them. */
#include "workload.h"

static pid_t start_counting(volatile long *counter)
{
	pid_t child = wl_fork();

	if (child == 0) {
		wl_child_ready();
		for (;;) {
			++*counter;
			wl_sleep_ms(1);
		}
	}
	return child;
}

int main(int argc, char **argv)
{
	volatile long *counters;
	pid_t reported, unreported;
	siginfo_t info;
	long before[2];
	int status;

	wl_init(argc, argv);
	counters = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	reported = start_counting(&counters[0]);
	unreported = start_counting(&counters[1]);
	MUST(kill(reported, SIGSTOP));
	CHECK(waitpid(reported, &status, WUNTRACED) == reported && WIFSTOPPED(status), "no stop is reported");
	MUST(kill(unreported, SIGSTOP));
	WAIT_FOR(wl_task_state(unreported) == 'T', "the child does not stop");
	before[0] = counters[0];
	before[1] = counters[1];

	wl_ready();
	if (wl_lose)
		MUST(kill(reported, SIGCONT));
	wl_sleep_ms(30);
	CHECK(counters[0] == before[0] && counters[1] == before[1], "a stopped child went on");
	CHECK(wl_task_state(reported) == 'T' && wl_task_state(unreported) == 'T', "their states are '%c' and '%c'", wl_task_state(reported),
	      wl_task_state(unreported));
	memset(&info, 0, sizeof(info));
	MUST(waitid(P_PID, unreported, &info, WSTOPPED | WNOHANG | WNOWAIT));
	CHECK(info.si_pid == unreported && info.si_code == CLD_STOPPED && info.si_status == SIGSTOP, "the unreported stop: pid %d code %d signal %d",
	      info.si_pid, info.si_code, info.si_status);
	MUST(kill(reported, SIGCONT));
	MUST(kill(unreported, SIGCONT));
	WAIT_FOR(counters[0] > before[0] && counters[1] > before[1], "they do not go on after SIGCONT");
	for (int i = 0; i < 2; i++) {
		pid_t child = i ? unreported : reported;

		MUST(kill(child, SIGKILL));
		while (waitpid(child, &status, 0) == child && !WIFSIGNALED(status))
			;
	}
	wl_ok();
}
