/* A ring of asynchronous I/O (io_setup): completed events that nobody has collected, and the context goes on working. */
#include <linux/aio_abi.h>

#include "workload.h"

static long submit(aio_context_t context, int fd, char *buffer, long long offset, uint64_t tag)
{
	struct iocb block = {
		.aio_data = tag,
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_buf = (uint64_t)buffer,
		.aio_nbytes = 16,
		.aio_offset = offset,
	};
	struct iocb *list[] = { &block };

	return syscall(SYS_io_submit, context, 1, list);
}

static long collect(aio_context_t context, long least, struct io_event *events, long most)
{
	struct timespec limit = { 2, 0 };

	return syscall(SYS_io_getevents, context, least, most, events, &limit);
}

int main(int argc, char **argv)
{
	aio_context_t context = 0, idle = 0;
	struct io_event events[8];
	char buffers[5][16];
	int fd;

	wl_init(argc, argv);
	fd = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(write(fd, "0123456789abcdefghijklmnopqrstuv", 32));
	MUST(syscall(SYS_io_setup, 16, &context));
	MUST(syscall(SYS_io_setup, 100, &idle));
	for (int i = 0; i < 3; i++)
		CHECK(submit(context, fd, buffers[i], i, 100 + i) == 1, "io_submit: %s", strerror(errno));
	CHECK(collect(context, 1, events, 1) == 1 && events[0].data == 100, "first event not collected");
	wl_sleep_ms(50);

	wl_ready();
	if (wl_lose)
		collect(context, 1, events, 1);
	CHECK(collect(context, 2, events, 8) == 2, "the two uncollected events are not there");
	for (int i = 0; i < 2; i++)
		CHECK(events[i].data == 101u + i && events[i].res == 16, "event %d: data %lld, result %lld", i, (long long)events[i].data,
		      (long long)events[i].res);
	CHECK(submit(context, fd, buffers[3], 10, 200) == 1, "io_submit after the restore: %s", strerror(errno));
	CHECK(collect(context, 1, events, 8) == 1 && events[0].data == 200, "an event of a new request does not come");
	CHECK(memcmp(buffers[3], "abcdefghijklmnop", 16) == 0, "the new request read something else");
	/* Several times around the ring. */
	for (uint64_t tag = 1000; tag < 1500; tag++)
		CHECK(submit(context, fd, buffers[3], 0, tag) == 1 && collect(context, 1, events, 8) == 1 && events[0].data == tag,
		      "the event of request %llu is lost", (unsigned long long)tag);
	CHECK(submit(idle, fd, buffers[4], 0, 300) == 1 && collect(idle, 1, events, 8) == 1 && events[0].data == 300, "the idle ring is dead");
	MUST(syscall(SYS_io_destroy, context));
	wl_ok();
}
