// gap: /proc files of threads cannot be opened before the threads exist
// peer: no, CRIU 4.2 restores a thread's file before the thread is there
/* Open files of /proc: of the process itself, of its child, of a thread, and of the system; also with a position. */
#include <pthread.h>

#include "workload.h"

static volatile pid_t tid;
static volatile bool stop;

static void *rest(void *unused)
{
	(void)unused;
	tid = wl_gettid();
	while (!stop)
		wl_sleep_ms(2);
	return NULL;
}

static int open_of(pid_t pid, const char *file)
{
	return MUST(open(({ static char path[96]; snprintf(path, sizeof(path), "/proc/%d/%s", pid, file); path; }), O_RDONLY));
}

static int pid_line(int fd, const char *field)
{
	static char text[8192];
	ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
	char *line;

	CHECK(length > 0, "an open status file cannot be read: %s", strerror(errno));
	text[length] = 0;
	line = strstr(text, field);
	return line ? atoi(line + strlen(field)) : -1;
}

int main(int argc, char **argv)
{
	int own, of_child, of_thread, directory, maps, system_wide, sysctl;
	char text[64];
	pthread_t thread;
	pid_t child;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, rest, NULL));
	WAIT_FOR(tid, "the thread does not start");
	child = wl_fork_waiting();
	if (child == 0) {
		WAIT_FOR(access(wl_path("looked"), F_OK) == 0, "the parent did not look");
		_exit(0);
	}
	own = open_of(getpid(), "status");
	of_child = open_of(child, "status");
	of_thread = MUST(open(({ snprintf(text, sizeof(text), "/proc/%d/task/%d/status", getpid(), tid); text; }), O_RDONLY));
	directory = open_of(child, "fd");
	maps = MUST(open("/proc/self/maps", O_RDONLY));
	system_wide = MUST(open("/proc/version", O_RDONLY));
	sysctl = MUST(open("/proc/sys/kernel/ostype", O_RDONLY));
	MUST(read(system_wide, text, 6));

	wl_ready();
	if (wl_lose)
		MUST(dup2(own, of_child));
	CHECK(pid_line(own, "\nPid:") == getpid(), "our own status file says pid %d", pid_line(own, "\nPid:"));
	CHECK(pid_line(of_child, "\nPid:") == child, "the child's status file says pid %d", pid_line(of_child, "\nPid:"));
	CHECK(pid_line(of_thread, "\nPid:") == tid, "the thread's status file says pid %d", pid_line(of_thread, "\nPid:"));
	CHECK(faccessat(directory, "0", F_OK, 0) == 0, "the child's directory of descriptors is dead");
	CHECK(read(maps, text, sizeof(text)) > 0, "the file of mappings cannot be read");
	CHECK(read(system_wide, text, 7) == 7 && memcmp(text, "version", 7) == 0, "/proc/version is read elsewhere");
	CHECK(read(sysctl, text, 5) == 5 && memcmp(text, "Linux", 5) == 0, "a sysctl cannot be read");
	MUST(close(MUST(creat(wl_path("looked"), 0666))));
	wl_join(child);
	stop = true;
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
