/* Seccomp's strict mode: a child that may only read, write and exit, asleep in a read; any other call kills it. */
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "workload.h"

/* Reads an order, answers, and on 'x' tries a call that strict mode forbids. */
static pid_t start_strict(int ends[2])
{
	int orders[2], answers[2];
	pid_t child;
	char order;

	MUST(pipe(orders));
	MUST(pipe(answers));
	child = wl_fork();
	if (child == 0) {
		wl_child_ready();
		MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
		while (read(orders[0], &order, 1) == 1) {
			if (order == 'x')
				syscall(SYS_getpid);
			order++;
			if (write(answers[1], &order, 1) != 1)
				break;
		}
		syscall(SYS_exit, 3);
	}
	close(orders[0]);
	close(answers[1]);
	ends[0] = answers[0];
	ends[1] = orders[1];
	wl_wait_blocked(child, SYS_read);
	return child;
}

int main(int argc, char **argv)
{
	pid_t good, bad;
	int good_ends[2], bad_ends[2], status;
	char byte = 'a';

	wl_init(argc, argv);
	/* The second inherits an end of the first one's pipes: no matter, the first is told to end by an order. */
	good = start_strict(good_ends);
	bad = start_strict(bad_ends);

	wl_ready();
	MUST(write(good_ends[1], &byte, 1));
	CHECK(read(good_ends[0], &byte, 1) == 1 && byte == 'b', "a strict process no longer answers");
	byte = 'x';
	if (wl_lose)
		MUST(kill(bad, SIGTERM));
	else
		MUST(write(bad_ends[1], &byte, 1));
	MUST(waitpid(bad, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a forbidden call in strict mode ended with status %#x", status);
	MUST(write(good_ends[1], &byte, 1));
	MUST(waitpid(good, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a forbidden call in strict mode ended with status %#x", status);
	wl_ok();
}
