// peer: no, CRIU 4.2 carries no queues of POSIX
// differs: descriptor fdinfo.mnt_id, the file system of queues is one for each namespace, which is made anew
// differs: descriptor fdinfo.ino, queues are made anew
// differs: descriptor file.device, the file system of queues is one for each namespace, which is made anew
// differs: descriptor file.inode, queues are made anew
// differs: descriptor file.modified, the kernel does not let the times of a queue be set
// differs: descriptor file.modified_ns, the kernel does not let the times of a queue be set
/*
 * Queues of messages of POSIX: what waits in them with its priorities, descriptors, one whose name is gone, and a child that
 * is to be told of the next message.
 */
#include <mqueue.h>
#include <sched.h>

#include "workload.h"

static struct mq_attr attributes = { .mq_maxmsg = 6, .mq_msgsize = 8192 };

static mqd_t made(const char *name, int flags)
{
	return MUST(mq_open(name, O_CREAT | O_EXCL | flags, 0620, &attributes));
}

/* Longer than a page, in which the kernel keeps it in one piece. */
static const char *long_text(void)
{
	static char text[8192];

	for (size_t at = 0; at < sizeof(text); at++)
		text[at] = at / 5 + at % 7;
	return text;
}

static void check_next(mqd_t queue, const char *text, size_t length, unsigned priority)
{
	static char got[8192];
	unsigned of;
	ssize_t bytes = mq_receive(queue, got, sizeof(got), &of);

	CHECK(bytes == (ssize_t)length, "the next message has %zd bytes instead of %zu", bytes, length);
	CHECK(memcmp(got, text, length) == 0, "the next message is another than %s", text);
	CHECK(of == priority, "the next message has priority %u instead of %u", of, priority);
}

static void fill(mqd_t queue)
{
	MUST(mq_send(queue, "low", 3, 0));
	MUST(mq_send(queue, long_text(), 8192, 5));
	MUST(mq_send(queue, "first of five", 13, 5));
	MUST(mq_send(queue, "", 0, 31));
	MUST(mq_send(queue, "second of five", 14, 5));
}

static void check_filled(mqd_t queue)
{
	check_next(queue, "", 0, 31);
	check_next(queue, long_text(), 8192, 5);
	check_next(queue, "first of five", 13, 5);
	check_next(queue, "second of five", 14, 5);
	check_next(queue, "low", 3, 0);
}

/* Is told of what comes into the empty queue. */
static void be_told(mqd_t empty)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711 };
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(mq_notify(empty, &event));
	wl_child_ready();
	CHECK(sigtimedwait(&set, &info, NULL) == SIGUSR1, "no signal tells of the message");
	CHECK(info.si_code == SI_MESGQ, "the signal is of another kind: %d", info.si_code);
	CHECK(info.si_value.sival_int == 4711, "the signal brings %d", info.si_value.sival_int);
	_exit(0);
}

int main(int argc, char **argv)
{
	mqd_t full, empty, reader, gone, gone_again;
	struct mq_attr now;
	char path[64];
	pid_t child;

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	full = made("/full", O_RDWR | O_NONBLOCK);
	fill(full);
	reader = MUST(mq_open("/full", O_RDONLY));
	empty = made("/empty", O_RDWR);
	gone = made("/gone", O_WRONLY);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", gone);
	gone_again = MUST(open(path, O_RDONLY | O_NONBLOCK));
	fill(gone);
	MUST(mq_unlink("/gone"));
	child = wl_fork();
	if (child == 0)
		be_told(empty);
	wl_ready();
	if (wl_lose)
		check_next(full, "", 0, 31);

	MUST(mq_getattr(full, &now));
	CHECK(now.mq_flags == O_NONBLOCK && now.mq_maxmsg == 6, "the queue has flags %lx", now.mq_flags);
	CHECK(mq_send(reader, "no", 2, 1) < 0 && errno == EBADF, "a descriptor for reading writes");
	check_filled(reader);
	CHECK(mq_receive(full, (char *)(char[8192]){ 0 }, 8192, NULL) < 0 && errno == EAGAIN, "there is one more message");
	CHECK(mq_open("/gone", O_RDONLY) < 0 && errno == ENOENT, "the name that was gone is back");
	check_filled(gone_again);
	MUST(mq_send(gone, "again", 5, 2));
	check_next(gone_again, "again", 5, 2);
	CHECK(mq_notify(empty, &(struct sigevent){ .sigev_notify = SIGEV_NONE }) < 0 && errno == EBUSY, "nobody is to be told");
	MUST(mq_send(empty, "news", 4, 0));
	wl_join(child);
	wl_ok();
}
