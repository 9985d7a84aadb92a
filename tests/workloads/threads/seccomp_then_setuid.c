/* A seccomp filter that root has set, without no_new_privs: the process has become somebody else since, who could not. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "workload.h"

#define SOMEBODY 1000

int main(int argc, char **argv)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getgid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 44),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };
	pid_t child;
	int status;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		if (!wl_lose)
			MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
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
