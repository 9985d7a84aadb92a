// peer: no, CRIU 4.2 cannot dump who may not ask for his filters
/* A seccomp filter that root has set, without no_new_privs: the process has become somebody else since, who could not. */
#include <sys/prctl.h>

#include "filters.h"

#define SOMEBODY 1000

int main(int argc, char **argv)
{
	pid_t child;
	int status;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		if (!wl_lose)
			forbid(SYS_getgid, 44, 0);
		MUST(syscall(SYS_setresuid, SOMEBODY, SOMEBODY, SOMEBODY));
		wl_child_ready();
		while (!wl_told_to_go())
			wl_sleep_ms(2);
		_exit(syscall(SYS_getgid) == -1 && errno == 44 && getuid() == SOMEBODY && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 ? 0 : 1);
	}
	wl_ready();
	MUST(waitpid(child, &status, 0));
	CHECK(status == 0, "the filter, the user or no_new_privs are not as they were: status %#x", status);
	wl_ok();
}
