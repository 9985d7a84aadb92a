/*
 * A tree built by a script, DIR/script, or by the one below: random mappings, descriptors, timers, signals, threads and
 * families of processes. Each process proves the contents of its mappings; the rest is for the harness to compare.
 *
 * One step to a line. `fork` begins the steps of a child, `end` ends them; numbers choose among what there is.
 */
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "workload.h"

#define PAGE 4096l
#define MOST 256

static const char *const by_default[] = {
	"map 8 3 0 1 5", "map 4 1 1 2 0", "pipe 100", "eventfd 7 1", "fork",   "setsid",	 "map 3 3 0 3 2",
	"queue 2 77",	 "file 300 1 9",  "end",      "zombie 3",    "thread 1", "itimer 500 20", "posix 1 700 9",
};

static char script[MOST][80];
static int steps;
static struct {
	uint8_t *at;
	size_t size;
	unsigned seed;
	int protection;
} maps[MOST];
static int mapped, descriptors[MOST], opened, named;

static void keep(int fd)
{
	if (opened < MOST)
		descriptors[opened++] = fd;
}

/* A descriptor of this process, or -1. */
static int chosen(long which)
{
	return opened ? descriptors[which % opened] : -1;
}

static const char *new_name(void)
{
	char name[40];

	snprintf(name, sizeof(name), "file%d.%d", getpid(), named++);
	return wl_path(name);
}

static void map(long pages, long protection, long shared, long seed, long advice)
{
	static const int advices[] = { 0, MADV_DONTFORK, MADV_DONTDUMP, MADV_SEQUENTIAL, MADV_RANDOM, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE };
	size_t size = pages * PAGE;
	uint8_t *at = MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0));
	int kind = advices[advice % 8];

	if (mapped == MOST || kind == MADV_DONTFORK)
		seed = 0;
	if (seed)
		wl_fill(at, size, seed);
	if (kind && !(shared && kind == MADV_MERGEABLE))
		MUST(madvise(at, size, kind));
	MUST(mprotect(at, size, protection & 7));
	if (seed) {
		maps[mapped].at = at, maps[mapped].size = size, maps[mapped].seed = seed;
		maps[mapped++].protection = protection & 7;
	}
}

/* A file with a length, opened with flags, mapped in part, with or without a name. */
static void file(long length, long kind, long seed)
{
	static const int flags[] = { O_RDWR, O_RDWR | O_APPEND, O_RDWR | O_NONBLOCK, O_RDWR | O_CLOEXEC };
	const char *path = new_name();
	int fd = MUST(open(path, flags[kind % 4] | O_CREAT, 0640));
	static uint8_t bytes[1 << 16];

	length %= sizeof(bytes);
	wl_fill(bytes, length, seed);
	MUST(write(fd, bytes, length));
	MUST(lseek(fd, seed % (length + 1), SEEK_SET));
	if (kind / 4 % 2)
		MUST(unlink(path));
	if (kind / 8 % 2 && length > 0)
		MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, kind / 16 % 2 ? MAP_SHARED : MAP_PRIVATE, fd, 0));
	keep(fd);
}

static void pipe_with(long bytes)
{
	static char data[4096];
	int ends[2];

	MUST(pipe2(ends, bytes % 2 ? O_NONBLOCK : 0));
	MUST(write(ends[1], data, bytes % sizeof(data)));
	keep(ends[0]);
	keep(ends[1]);
}

static void watch(long which)
{
	struct epoll_event event = { .events = EPOLLIN | (which & 1 ? EPOLLET : 0), .data.u64 = which };
	int set = MUST(epoll_create1(0));

	/* Regular files cannot be watched. */
	for (int i = 0; i < 3; i++)
		epoll_ctl(set, EPOLL_CTL_ADD, chosen(which + i), &event);
	keep(set);
}

static void timer_fd(long seconds, long interval)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME };
	struct itimerspec when = { { interval, 0 }, { 100 + seconds, 0 } };
	int fd = MUST(timerfd_create(clocks[seconds % 3], 0));

	MUST(timerfd_settime(fd, 0, &when, NULL));
	keep(fd);
}

static void posix_timer(long clock, long seconds, long interval)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME };
	struct sigevent event = { .sigev_notify = interval % 2 ? SIGEV_SIGNAL : SIGEV_NONE, .sigev_signo = SIGRTMIN + 3 };
	struct itimerspec when = { { interval, 0 }, { 100 + seconds, 0 } };
	int id;

	MUST(syscall(SYS_timer_create, clocks[clock % 3], &event, &id));
	MUST(syscall(SYS_timer_settime, id, 0, &when, NULL));
}

static void queue(long signal, long value)
{
	MUST(sigqueue(getpid(), SIGRTMIN + signal % 20, (union sigval){ .sival_int = value }));
}

static void handler(int signal)
{
	(void)signal;
}

static void act(long signal, long flags)
{
	static const int known[] = { SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_SIGINFO, SA_RESETHAND };
	struct sigaction action = { .sa_handler = flags % 3 ? handler : SIG_IGN, .sa_flags = known[flags % 5] };

	sigfillset(&action.sa_mask);
	MUST(sigaction(SIGRTMIN + signal % 20, &action, NULL));
}

static void *resting(void *number)
{
	char name[16];
	sigset_t set;

	snprintf(name, sizeof(name), "thread-%ld", (long)number);
	MUST(prctl(PR_SET_NAME, name));
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 20 + (long)number % 5);
	MUST0(pthread_sigmask(SIG_BLOCK, &set, NULL));
	MUST(setpriority(PRIO_PROCESS, wl_gettid(), (long)number % 10));
	wl_wait();
	return NULL;
}

static void thread(long number)
{
	pthread_t thread;

	MUST0(pthread_create(&thread, NULL, resting, (void *)number));
}

static void zombie(long how)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		if (how % 2)
			_exit(how % 256);
		kill(getpid(), SIGKILL);
	}
	WAIT_FOR(wl_task_state(child) == 'Z', "no zombie comes to be");
}

static void attributes(long which, long value)
{
	struct rlimit limit;
	stack_t stack = { .ss_size = 16384 };

	switch (which % 8) {
	case 0:
		/* A hard limit that is lowered cannot be raised again. */
		MUST(getrlimit(RLIMIT_CORE, &limit));
		limit.rlim_cur = limit.rlim_max < 1000 ? limit.rlim_max : (rlim_t)(500 + value);
		MUST(setrlimit(RLIMIT_CORE, &limit));
		break;
	case 1: umask(value & 0777); break;
	case 2: MUST(setpriority(PRIO_PROCESS, 0, value % 15)); break;
	case 3: MUST(prctl(PR_SET_NAME, value % 2 ? "another name" : "a)b (c")); break;
	case 4: MUST(prctl(PR_SET_CHILD_SUBREAPER, value % 2)); break;
	case 5: MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); break;
	case 6: MUST(prctl(PR_SET_TIMERSLACK, 1000 + value)); break;
	case 7:
		stack.ss_sp = MUST(mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		MUST(sigaltstack(&stack, NULL));
		break;
	}
}

static void special(long kind, long value)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + value % 20);
	switch (kind % 6) {
	case 0: keep(MUST(eventfd(value, kind % 2 ? EFD_NONBLOCK : 0))); break;
	case 1: keep(MUST(signalfd(-1, &set, 0))); break;
	case 2:
		fd = MUST(inotify_init1(0));
		MUST(inotify_add_watch(fd, "/dev", IN_DELETE_SELF | (value % 2 ? IN_MOVE_SELF : 0)));
		keep(fd);
		break;
	case 3:
		fd = MUST(memfd_create("random", value % 2 ? MFD_ALLOW_SEALING : 0));
		MUST(ftruncate(fd, value * 1000));
		keep(fd);
		break;
	case 4: keep(MUST(open(value % 2 ? "/dev/null" : "/dev/zero", O_RDWR))); break;
	case 5: keep(MUST(open(wl_dir, O_RDONLY | O_DIRECTORY))); break;
	}
}

static void step(const char *word, long a, long b, long c, long d, long e)
{
	if (!strcmp(word, "map"))
		map(a, b, c, d, e);
	else if (!strcmp(word, "unmap") && mapped && maps[a % mapped].seed)
		/* A hole, which may soon be somebody else's; what is left is no longer proved here. */
		MUST(munmap(maps[a % mapped].at, PAGE)), maps[a % mapped].seed = 0;
	else if (!strcmp(word, "file"))
		file(a, b, c);
	else if (!strcmp(word, "pipe"))
		pipe_with(a);
	else if (!strcmp(word, "special"))
		special(a, b);
	else if (!strcmp(word, "dup") && opened)
		MUST(dup3(chosen(a), 100 + b, c % 2 ? O_CLOEXEC : 0));
	else if (!strcmp(word, "epoll"))
		watch(a);
	else if (!strcmp(word, "timerfd"))
		timer_fd(a, b);
	else if (!strcmp(word, "posix"))
		posix_timer(a, b, c);
	else if (!strcmp(word, "itimer"))
		MUST(setitimer(ITIMER_REAL, &(struct itimerval){ { b, 0 }, { 100 + a, 0 } }, NULL));
	else if (!strcmp(word, "queue"))
		queue(a, b);
	else if (!strcmp(word, "action"))
		act(a, b);
	else if (!strcmp(word, "thread"))
		thread(a);
	else if (!strcmp(word, "zombie"))
		zombie(a);
	else if (!strcmp(word, "setsid") && getpid() != getpgrp())
		MUST(setsid());
	else if (!strcmp(word, "setpgid") && getpid() != getsid(0))
		MUST(setpgid(0, 0));
	else if (!strcmp(word, "attribute"))
		attributes(a, b);
}

static void prove(void)
{
	for (int i = 0; i < mapped; i++) {
		if (!maps[i].seed || !(maps[i].protection & PROT_READ))
			continue;
		if (wl_lose && maps[i].protection & PROT_WRITE)
			maps[i].at[maps[i].size - 1] ^= 1;
		CHECK(wl_differs(maps[i].at, maps[i].size, maps[i].seed) < 0, "mapping %d of process %d differs at %zd", i, getpid(),
		      wl_differs(maps[i].at, maps[i].size, maps[i].seed));
	}
}

/* The steps of one process, from `at` to its end; returns where that is. */
static int live(int at, bool root)
{
	pid_t children[MOST];
	int born = 0;

	for (; at < steps && strcmp(script[at], "end"); at++) {
		char word[20] = "";
		long n[5] = { 0 };

		sscanf(script[at], "%19s %ld %ld %ld %ld %ld", word, &n[0], &n[1], &n[2], &n[3], &n[4]);
		if (strcmp(word, "fork")) {
			step(word, n[0], n[1], n[2], n[3], n[4]);
			continue;
		}
		children[born] = wl_fork();
		if (children[born] == 0)
			live(at + 1, false);
		born++;
		for (int depth = 1; depth && ++at < steps;)
			depth += !strcmp(script[at], "fork") ? 1 : !strcmp(script[at], "end") ? -1 : 0;
	}
	if (root)
		wl_ready();
	else
		wl_child_ready(), wl_wait();
	prove();
	for (int i = 0; i < born; i++)
		wl_join(children[i]);
	if (!root)
		_exit(0);
	return at;
}

int main(int argc, char **argv)
{
	FILE *from;
	sigset_t queued;

	wl_init(argc, argv);
	/* Those that are queued wait, whichever threads there are. */
	sigemptyset(&queued);
	for (int i = 0; i < 20; i++)
		sigaddset(&queued, SIGRTMIN + i);
	MUST(sigprocmask(SIG_BLOCK, &queued, NULL));
	from = fopen(wl_path("script"), "re");
	while (from && steps < MOST && fgets(script[steps], sizeof(script[0]), from)) {
		script[steps][strcspn(script[steps], "\n")] = 0;
		steps++;
	}
	if (from)
		fclose(from);
	else
		for (size_t i = 0; i < sizeof(by_default) / sizeof(by_default[0]); i++)
			strcpy(script[steps++], by_default[i]);
	live(0, true);
	wl_ok();
}
