// peer: no, CRIU 4.2 loses queues of POSIX, and does not remove what was removed
/* An ipc namespace of its own: memory (mapped, unmapped, removed), messages, semaphores and queues of POSIX, limits. */
#include <mqueue.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "workload.h"

#define SIZE 20000

struct message {
	long type;
	char text[64];
};

static void write_limit(const char *name, const char *value)
{
	int fd = MUST(open(name, O_WRONLY));

	MUST(write(fd, value, strlen(value)));
	close(fd);
}

static void check_limit(const char *name, const char *value)
{
	char text[64] = "";
	int fd = MUST(open(name, O_RDONLY));

	MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	text[strcspn(text, "\n")] = 0;
	CHECK(strcmp(text, value) == 0, "%s is %s", name, text);
}

static void check_message(int queue, long type, const char *text)
{
	struct message got = { 0 };
	ssize_t length = msgrcv(queue, &got, sizeof(got.text), 0, IPC_NOWAIT);

	CHECK(length == (ssize_t)strlen(text), "a message of %zd bytes", length);
	CHECK(got.type == type && memcmp(got.text, text, length) == 0, "a message of type %ld", got.type);
}

int main(int argc, char **argv)
{
	struct message first = { 7, "first" }, second = { 3, "" };
	unsigned short values[3] = { 1, 20, 300 }, now[3];
	struct mq_attr attributes = { .mq_maxmsg = 4, .mq_msgsize = 100 };
	struct shmid_ds status;
	struct semid_ds of_set;
	int skipped, loose, mapped, removed, queue, set;
	char *loose_at, *mapped_at, *removed_at;
	mqd_t posix;

	wl_init(argc, argv);
	MUST(unshare(CLONE_NEWIPC));
	/* So that ids are not those that come by themselves. */
	skipped = MUST(shmget(IPC_PRIVATE, 4096, 0600));
	loose = MUST(shmget(0x4242, SIZE, IPC_CREAT | 0640));
	mapped = MUST(shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600));
	removed = MUST(shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600));
	MUST(shmctl(skipped, IPC_RMID, NULL));
	loose_at = MUST(shmat(loose, NULL, 0));
	strcpy(loose_at + 8192, "loose");
	MUST(shmdt(loose_at));
	mapped_at = MUST(shmat(mapped, NULL, 0));
	strcpy(mapped_at + 4096, "mapped");
	removed_at = MUST(shmat(removed, NULL, 0));
	strcpy(removed_at, "removed");
	MUST(shmctl(removed, IPC_RMID, NULL));
	MUST(shmctl(loose, IPC_STAT, &status));
	status.shm_perm.uid = 1000;
	MUST(shmctl(loose, IPC_SET, &status));

	queue = MUST(msgget(0x77, IPC_CREAT | 0622));
	MUST(msgsnd(queue, &first, strlen(first.text), 0));
	MUST(msgsnd(queue, &second, 0, 0));
	set = MUST(semget(0x99, 3, IPC_CREAT | 0644));
	MUST(semctl(set, 0, SETALL, values));
	write_limit("/proc/sys/kernel/msgmax", "5000");
	write_limit("/proc/sys/kernel/sem", "100 2000 50 60");
	write_limit("/proc/sys/fs/mqueue/msg_max", "7");
	posix = MUST(mq_open("/empty", O_RDWR | O_CREAT, 0640, &attributes));
	MUST(mq_close(posix));
	wl_ready();
	if (wl_lose)
		MUST(semctl(set, 1, SETVAL, 21));

	MUST(shmctl(loose, IPC_STAT, &status));
	CHECK(status.shm_segsz == SIZE && status.shm_perm.uid == 1000, "the segment has %zu bytes", status.shm_segsz);
	CHECK(MUST(shmget(0x4242, 0, 0)) == loose, "the segment has another id");
	loose_at = MUST(shmat(loose, NULL, 0));
	CHECK(strcmp(loose_at + 8192, "loose") == 0, "the segment has other contents");
	CHECK(strcmp(mapped_at + 4096, "mapped") == 0, "the mapped segment has other contents");
	MUST(shmctl(mapped, IPC_STAT, &status));
	CHECK(status.shm_nattch == 1, "it is mapped %lu times", (unsigned long)status.shm_nattch);
	CHECK(strcmp(removed_at, "removed") == 0, "the removed segment has other contents");
	MUST(shmctl(removed, IPC_STAT, &status));
	CHECK(status.shm_perm.mode & 01000, "the removed segment is not to go");
	MUST(shmdt(removed_at));
	CHECK(shmctl(removed, IPC_STAT, &status) < 0, "the removed segment stays");

	CHECK(MUST(msgget(0x77, 0)) == queue, "the queue has another id");
	check_message(queue, 7, "first");
	check_message(queue, 3, "");
	CHECK(msgrcv(queue, &first, sizeof(first.text), 0, IPC_NOWAIT) < 0, "there is one more message");
	CHECK(MUST(semget(0x99, 3, 0)) == set, "the set has another id");
	MUST(semctl(set, 0, GETALL, now));
	CHECK(memcmp(values, now, sizeof(now)) == 0, "the semaphores are %d %d %d", now[0], now[1], now[2]);
	MUST(semctl(set, 0, IPC_STAT, &of_set));
	CHECK((of_set.sem_perm.mode & 0777) == 0644, "the set has mode %o", of_set.sem_perm.mode);
	check_limit("/proc/sys/kernel/msgmax", "5000");
	check_limit("/proc/sys/kernel/sem", "100\t2000\t50\t60");
	check_limit("/proc/sys/fs/mqueue/msg_max", "7");
	posix = MUST(mq_open("/empty", O_RDWR));
	MUST(mq_getattr(posix, &attributes));
	CHECK(attributes.mq_maxmsg == 4 && attributes.mq_msgsize == 100, "the queue of POSIX is another");
	wl_ok();
}
