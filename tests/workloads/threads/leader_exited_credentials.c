// peer: no, CRIU 4.2 cannot seize a leader that has exited
/* The credentials of a first thread that has exited: they still say who may send the process a signal. */
#include <grp.h>
#include <pthread.h>

#include "workload.h"

#define UID 1234
#define GID 4321

/* The line of the leader's status. */
static const char *line(const char *key)
{
	static char text[8192];
	char path[64], *at;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", getpid(), getpid());
	wl_read_file(path, text, sizeof(text));
	at = strstr(text, key);
	if (!at)
		return "";
	at += strlen(key);
	*strchr(at, '\n') = 0;
	return at;
}

static void *rest(void *unused)
{
	int status;
	pid_t child;

	(void)unused;
	WAIT_FOR(wl_task_state(getpid()) == 'Z', "the first thread does not end");
	wl_ready();
	CHECK(wl_task_state(getpid()) == 'Z', "the leader's state is %c", wl_task_state(getpid()));
	CHECK(strcmp(line("\nUid:"), "\t1234\t1234\t1234\t1234") == 0, "the leader's uids are%s", line("\nUid:"));
	CHECK(strcmp(line("\nGid:"), "\t4321\t4321\t4321\t4321") == 0, "the leader's gids are%s", line("\nGid:"));
	CHECK(strcmp(line("\nGroups:"), "\t77 88 ") == 0, "the leader's groups are%s", line("\nGroups:"));
	CHECK(strcmp(line("\nCapEff:"), "\t0000000000000000") == 0, "the leader's capabilities are%s", line("\nCapEff:"));
	CHECK(geteuid() == 0, "the thread is user %d", geteuid());
	child = MUST(fork());
	if (child == 0) {
		pid_t parent = getppid();

		MUST(setgroups(0, NULL));
		MUST(setresuid(UID, UID, UID));
		_exit(kill(parent, 0) == 0 ? 0 : errno);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0, "its own user cannot send it a signal: %#x", status);
	wl_ok();
}

int main(int argc, char **argv)
{
	static const gid_t groups[] = { 77, 88 };
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	/* Of this thread alone: not through the library, which would ask all. Once it has ended, nothing can change them. */
	if (!wl_lose) {
		MUST(syscall(SYS_setgroups, 2, groups));
		MUST(syscall(SYS_setresgid, GID, GID, GID));
		MUST(syscall(SYS_setresuid, UID, UID, UID));
	}
	syscall(SYS_exit, 0);
}
