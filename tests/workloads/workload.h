/*
 * What every self-checking workload shares: the protocol with the harness, and the checks.
 *
 * A workload is started as `NAME DIR [--lose]`, with its own session, stdin /dev/null, stdout and stderr a log file. DIR is
 * an empty directory of its own, which it may use for its files. It sets its state up, says "ready" (wl_ready), and is
 * then checkpointed and restored, any number of times or never. When DIR/go exists it proves its complete state, says
 * "ok" or "FAIL: what" and exits. With --lose it first destroys the state that it is about: the harness demands a FAIL
 * then, so that no check can pass by not looking.
 *
 * What is said is appended to DIR/result, opened and closed each time, and DIR/go is polled for by name: the protocol
 * holds no descriptor, no signal and no timer that could mix with the state under test.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WL_UNUSED __attribute__((unused))

static char wl_dir[PATH_MAX] WL_UNUSED;
/* The directory in /proc of the process that has started the workload. */
static char wl_harness[64] WL_UNUSED;
/* Set by --lose: destroy the state under test after wl_ready() and before it is checked. */
static bool wl_lose WL_UNUSED;

/* The path of NAME in the workload's directory; the same few buffers are used in turn. */
WL_UNUSED static const char *wl_path(const char *name)
{
	static _Thread_local char paths[8][PATH_MAX + 64];
	static _Thread_local unsigned next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", wl_dir, name);
	return path;
}

WL_UNUSED static void wl_say(const char *line)
{
	int fd = open(wl_path("result"), O_WRONLY | O_APPEND | O_CLOEXEC);

	if (fd < 0 || write(fd, line, strlen(line)) < 0)
		fprintf(stderr, "cannot say '%s': %s\n", line, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* Ends the calling process; any process or thread of the workload may call it. */
__attribute__((noreturn, format(printf, 1, 2))) WL_UNUSED static void wl_fail(const char *format, ...)
{
	char what[900], line[1000];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	snprintf(line, sizeof(line), "FAIL: %s\n", what);
	wl_say(line);
	_exit(1);
}

/* The state under test must hold; otherwise the workload fails with the message. */
#define CHECK(condition, ...)                  \
	do {                                   \
		if (!(condition))              \
			wl_fail(__VA_ARGS__);  \
	} while (0)

/* A call that only prepares or looks must succeed; its value. */
#define MUST(call)                                                                                              \
	({                                                                                                      \
		__typeof__(call) wl_result = (call);                                                            \
		if ((long)wl_result == -1L)                                                                     \
			wl_fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, strerror(errno));                   \
		wl_result;                                                                                      \
	})

/* The same for pthread calls, which return their error. */
#define MUST0(call)                                                                                             \
	do {                                                                                                    \
		int wl_error = (call);                                                                          \
		if (wl_error)                                                                                   \
			wl_fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, strerror(wl_error));                \
	} while (0)

WL_UNUSED static void wl_init(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: %s DIR [--lose]\n", argv[0]);
		exit(2);
	}
	snprintf(wl_dir, sizeof(wl_dir), "%s", argv[1]);
	snprintf(wl_harness, sizeof(wl_harness), "/proc/%d", getppid());
	wl_lose = argc > 2 && strcmp(argv[2], "--lose") == 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getsid(0) != getpid())
		MUST(setsid());
}

WL_UNUSED static void wl_sleep_ms(long ms)
{
	struct timespec pause = { ms / 1000, ms % 1000 * 1000000L };

	while (nanosleep(&pause, &pause) < 0 && errno == EINTR)
		;
}

/*
 * For who waits while it may be looked at: each nap is exactly as the one before. Another would note in memory what was
 * left of it whenever somebody stops it.
 */
WL_UNUSED static void wl_nap(void)
{
	static const struct timespec pause = { .tv_nsec = 2000000 };

	nanosleep(&pause, NULL);
}

/* A harness that died must not leave its workloads behind, if they could see it once. */
WL_UNUSED static void wl_end_without_harness(bool watched)
{
	if (!watched || access(wl_harness, F_OK) == 0)
		return;
	wl_say("FAIL: the harness has gone\n");
	kill(0, SIGKILL);
}

/* Whether the harness has asked for the check. */
WL_UNUSED static bool wl_told_to_go(void)
{
	static enum { UNKNOWN, WATCHED, UNWATCHED } harness;

	if (access(wl_path("go"), F_OK) == 0)
		return true;
	if (harness == UNKNOWN)
		harness = access(wl_harness, F_OK) == 0 ? WATCHED : UNWATCHED;
	wl_end_without_harness(harness == WATCHED);
	return false;
}

/*
 * Waits until the harness asks for the check, however often the waiting is interrupted. Each turn is exactly as the one
 * before: registers and memory are at rest, and can be compared.
 */
WL_UNUSED static void wl_wait(void)
{
	static const struct timespec pause = { .tv_nsec = 5000000 };
	bool watched = access(wl_harness, F_OK) == 0;
	char go[PATH_MAX + 64];

	snprintf(go, sizeof(go), "%s/go", wl_dir);
	while (access(go, F_OK) != 0) {
		nanosleep(&pause, NULL);
		wl_end_without_harness(watched);
	}
}

/* The state is set up: tell the harness, and wait for its word to check. */
WL_UNUSED static void wl_ready(void)
{
	wl_say("ready\n");
	wl_wait();
}

/* Every check has passed. */
__attribute__((noreturn)) WL_UNUSED static void wl_ok(void)
{
	wl_say("ok\n");
	_exit(0);
}

/* Waits up to ten seconds for a condition that another process or thread brings about. */
#define WAIT_FOR(condition, ...)                                       \
	do {                                                           \
		int wl_turns = 5000;                                   \
		bool wl_holds;                                         \
		while (!(wl_holds = (condition)) && --wl_turns > 0)    \
			wl_sleep_ms(2);                                \
		if (!wl_holds)                                         \
			wl_fail(__VA_ARGS__);                          \
	} while (0)

/* Waits for a child and demands that it exited with 0 (a child that failed has said why itself). */
WL_UNUSED static void wl_join(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child)
		wl_fail("waitpid(%d): %s", child, strerror(errno));
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		wl_fail("child %d ended with wait status %#x", child, status);
}

static int wl_sync_fd WL_UNUSED = -1;

/* Forks a child, and returns to the parent only once the child has said wl_child_ready(). */
WL_UNUSED static pid_t wl_fork(void)
{
	int ends[2];
	char byte;
	pid_t child;

	MUST(pipe2(ends, O_CLOEXEC));
	fflush(stdout);
	child = MUST(fork());
	if (child == 0) {
		if (wl_sync_fd >= 0)
			close(wl_sync_fd);
		close(ends[0]);
		wl_sync_fd = ends[1];
		return 0;
	}
	close(ends[1]);
	if (read(ends[0], &byte, 1) != 1)
		wl_fail("child %d ended before it was ready", child);
	close(ends[0]);
	return child;
}

/* The child's state is set up. Leaves no descriptor behind. */
WL_UNUSED static void wl_child_ready(void)
{
	MUST(write(wl_sync_fd, "", 1));
	close(wl_sync_fd);
	wl_sync_fd = -1;
}

/* A child that comes back from here when the harness asks for the check. */
WL_UNUSED static pid_t wl_fork_waiting(void)
{
	pid_t child = wl_fork();

	if (child == 0) {
		wl_child_ready();
		wl_wait();
	}
	return child;
}

/* A child that does nothing until a signal ends it. */
WL_UNUSED static pid_t wl_fork_idle(void)
{
	pid_t child = wl_fork();

	if (child == 0) {
		wl_child_ready();
		for (;;)
			pause();
	}
	return child;
}

/* Reads a whole small file, for /proc; the text ends with a zero. Returns its length. */
WL_UNUSED static size_t wl_read_file(const char *path, char *text, size_t size)
{
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	size_t length = 0;
	ssize_t got;

	while (length < size - 1 && (got = read(fd, text + length, size - 1 - length)) > 0)
		length += got;
	text[length] = 0;
	close(fd);
	return length;
}

/* The state letter of a task ("/proc/PID/stat"), 0 if there is no such task. */
WL_UNUSED static char wl_task_state(pid_t pid)
{
	char path[64], text[512], *end;
	int fd;
	ssize_t got;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (got <= 0)
		return 0;
	text[got] = 0;
	end = strrchr(text, ')');
	return end ? end[2] : 0;
}

/* Waits until a task sleeps inside the system call `nr` ("/proc/PID/syscall"), so that it is surely blocked there. */
WL_UNUSED static void wl_wait_blocked(pid_t tid, long nr)
{
	char path[64], text[256];

	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	for (int turn = 0; turn < 5000; turn++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
		char *end;

		if (fd >= 0)
			close(fd);
		if (got > 0) {
			text[got] = 0;
			if (strtol(text, &end, 10) == nr && end != text)
				return;
		}
		wl_sleep_ms(2);
	}
	wl_fail("task %d never blocked in system call %ld (last: %s)", tid, nr, text);
}

/* Reads a file line by line without the heap, so that looking at the memory does not change it. */
struct wl_lines {
	int fd;
	size_t start, end;
	char buffer[8192];
};

WL_UNUSED static bool wl_next_line(struct wl_lines *from, char *line, size_t size)
{
	size_t length = 0;

	for (;;) {
		if (from->start == from->end) {
			ssize_t got = read(from->fd, from->buffer, sizeof(from->buffer));

			if (got <= 0)
				return false;
			from->start = 0;
			from->end = got;
		}
		if (length < size - 1)
			line[length++] = from->buffer[from->start];
		if (from->buffer[from->start++] == '\n') {
			line[length] = 0;
			return true;
		}
	}
}

/* The line of /proc/self/maps, or with a `field` ("VmFlags:") that line of smaps, for the mapping that holds `address`. */
WL_UNUSED static const char *wl_mapping(const void *address, const char *field)
{
	static char line[PATH_MAX + 256];
	struct wl_lines maps = { .fd = MUST(open(field ? "/proc/self/smaps" : "/proc/self/maps", O_RDONLY | O_CLOEXEC)) };
	bool inside = false;

	while (wl_next_line(&maps, line, sizeof(line))) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (unsigned long)address && (unsigned long)address < end;
		if (inside && (!field || strncmp(line, field, strlen(field)) == 0)) {
			close(maps.fd);
			return line;
		}
	}
	close(maps.fd);
	return "";
}

/* Whether a mapping has a flag of smaps, two letters as in proc(5). */
WL_UNUSED static bool wl_has_vmflag(const void *address, const char *flag)
{
	char padded[8];

	snprintf(padded, sizeof(padded), " %s", flag);
	return strstr(wl_mapping(address, "VmFlags:"), padded) != NULL;
}

/* Whether reading a byte there raises SIGSEGV or SIGBUS; asked of a child, so that the workload's handlers stay as they are. */
WL_UNUSED static bool wl_faults(const volatile char *address, bool writing)
{
	int status;
	pid_t probe = MUST(fork());

	if (probe == 0) {
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		if (writing)
			*(volatile char *)address = 1;
		else
			(void)*address;
		_exit(0);
	}
	MUST(waitpid(probe, &status, 0));
	return WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS);
}

/* A pattern that tells every byte of memory or file from its neighbours, by seed. */
WL_UNUSED static uint8_t wl_byte(unsigned seed, size_t at)
{
	uint64_t x = at * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;

	return (x ^ x >> 29) >> 11;
}

WL_UNUSED static void wl_fill(void *memory, size_t size, unsigned seed)
{
	for (size_t at = 0; at < size; at++)
		((uint8_t *)memory)[at] = wl_byte(seed, at);
}

/* The offset of the first byte that differs from the pattern, or -1. */
WL_UNUSED static ssize_t wl_differs(const void *memory, size_t size, unsigned seed)
{
	for (size_t at = 0; at < size; at++)
		if (((const uint8_t *)memory)[at] != wl_byte(seed, at))
			return at;
	return -1;
}

/* Milliseconds of a clock. */
WL_UNUSED static long wl_now_ms(clockid_t clock)
{
	struct timespec now;

	MUST(clock_gettime(clock, &now));
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

WL_UNUSED static pid_t wl_gettid(void)
{
	return syscall(SYS_gettid);
}

#endif
