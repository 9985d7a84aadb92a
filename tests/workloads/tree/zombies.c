/* Children that have ended and not been waited for: exit codes, signals, also one that left a core; and their usage. */
#include <sys/resource.h>

#include "workload.h"

int main(int argc, char **argv)
{
	pid_t children[4];
	int status;

	wl_init(argc, argv);
	for (int i = 0; i < 4; i++) {
		children[i] = MUST(fork());
		if (children[i] == 0) {
			struct rlimit none = { 0, 0 };

			setrlimit(RLIMIT_CORE, &none);
			if (i == 2)
				raise(SIGTERM);
			if (i == 3)
				raise(SIGKILL);
			_exit(i * 42);
		}
	}
	for (int i = 0; i < 4; i++)
		WAIT_FOR(wl_task_state(children[i]) == 'Z', "child %d does not end", i);

	wl_ready();
	if (wl_lose)
		MUST(waitpid(children[1], &status, 0));
	for (int i = 0; i < 4; i++)
		CHECK(wl_task_state(children[i]) == 'Z', "child %d is no zombie, but '%c'", i, wl_task_state(children[i]));
	for (int i = 0; i < 4; i++) {
		CHECK(waitpid(children[i], &status, WNOHANG) == children[i], "child %d cannot be waited for", i);
		if (i < 2)
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i * 42, "child %d ended with %#x", i, status);
		else
			CHECK(WIFSIGNALED(status) && WTERMSIG(status) == (i == 2 ? SIGTERM : SIGKILL), "child %d ended with %#x", i, status);
	}
	CHECK(waitpid(-1, &status, WNOHANG) < 0 && errno == ECHILD, "there are more children");
	wl_ok();
}
