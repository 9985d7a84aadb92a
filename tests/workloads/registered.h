/* An io_uring with registered files, memory and an eventfd. */
#ifndef REGISTERED_H
#define REGISTERED_H

#include <sys/eventfd.h>

#include "ring.h"

struct registered {
	struct ring ring;
	int event, file, ends[2];
	/* Of its own, and shared. */
	char *own, *shared;
};

static void registered_ask(struct registered *all, unsigned what, const void *argument, unsigned count)
{
	MUST(syscall(SYS_io_uring_register, all->ring.fd, what, argument, count));
}

/* Puts a file or, with a vector, memory into a slot, or takes away what is there. */
static void registered_put(struct registered *all, unsigned slot, int file, const struct iovec *vector, uint64_t tag)
{
	struct io_uring_rsrc_update2 update = { .offset = slot, .nr = 1, .tags = (uint64_t)&tag };

	update.data = vector ? (uint64_t)vector : (uint64_t)&file;
	registered_ask(all, vector ? IORING_REGISTER_BUFFERS_UPDATE : IORING_REGISTER_FILES_UPDATE2, &update, sizeof(update));
}

static uint64_t registered_told(struct registered *all)
{
	uint64_t count;

	MUST(read(all->event, &count, sizeof(count)));
	return count;
}

WL_UNUSED static void registered_prepare(struct registered *all, unsigned flags)
{
	struct io_uring_rsrc_register table = { .nr = 40, .flags = IORING_RSRC_REGISTER_SPARSE };
	struct io_uring_file_index_range range = { .off = 12, .len = 4 };
	struct iovec part;
	uint64_t seven = 7;
	int memory;

	all->file = MUST(open(wl_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(write(all->file, "0123456789abcdefghijklmnopqrstuv", 32));
	MUST(pipe(all->ends));
	all->event = MUST(eventfd(0, EFD_NONBLOCK));
	all->own = MUST(mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memset(all->own, 'o', 5 * 4096);
	memory = MUST(memfd_create("shared", 0));
	MUST(ftruncate(memory, 4096));
	all->shared = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0));
	memset(all->shared, 's', 4096);

	ring_make(&all->ring, 8, flags);
	registered_ask(all, IORING_REGISTER_FILES2, &table, sizeof(table));
	registered_ask(all, IORING_REGISTER_FILE_ALLOC_RANGE, &range, 0);
	registered_put(all, 2, all->file, NULL, 0);
	registered_put(all, 39, all->ends[0], NULL, 1234);
	table.nr = 5;
	registered_ask(all, IORING_REGISTER_BUFFERS2, &table, sizeof(table));
	part = (struct iovec){ all->own + 100, 4 * 4096 };
	registered_put(all, 1, -1, &part, 0);
	part = (struct iovec){ all->shared, 4096 };
	registered_put(all, 4, -1, &part, 99);
	registered_ask(all, IORING_REGISTER_EVENTFD, &all->event, 1);
	for (uint64_t tag = 1; tag <= 1000; tag++) {
		ring_give(&all->ring, tag);
		ring_submit(&all->ring, 1);
		ring_take(&all->ring, tag, 0);
	}
	CHECK(registered_told(all) == 1000, "the eventfd is not told of all completions");
	MUST(write(all->event, &seven, 8));
}

static void registered_read(struct registered *all, uint64_t tag, int slot, int buffer, char *into, uint64_t offset)
{
	struct io_uring_sqe *entry = ring_give(&all->ring, tag);

	entry->opcode = IORING_OP_READ_FIXED;
	entry->flags = IOSQE_FIXED_FILE;
	entry->fd = slot;
	entry->buf_index = buffer;
	entry->addr = (uint64_t)into;
	entry->len = 8;
	entry->off = offset;
	ring_submit(&all->ring, 1);
	ring_take(&all->ring, tag, 8);
}

WL_UNUSED static void registered_check(struct registered *all)
{
	struct io_uring_sqe *entry;
	char *into = all->own + 100 + 4 * 4096 - 8;

	if (wl_lose)
		registered_ask(all, IORING_UNREGISTER_FILES, NULL, 0);
	CHECK(registered_told(all) == 7, "the eventfd was told of what is none of the program's");
	CHECK(all->own[0] == 'o' && all->own[5 * 4096 - 1] == 'o' && all->shared[4095] == 's', "the memory is another");
	registered_read(all, 2001, 2, 1, into, 10);
	CHECK(memcmp(into, "abcdefgh", 8) == 0, "read '%.8s' into the memory of its own", into);
	registered_read(all, 2002, 2, 4, all->shared, 0);
	CHECK(memcmp(all->shared, "01234567", 8) == 0, "read '%.8s' into the shared memory", all->shared);
	MUST(write(all->ends[1], "pipeline", 8));
	registered_read(all, 2003, 39, 1, all->own + 4096, -1);
	CHECK(memcmp(all->own + 4096, "pipeline", 8) == 0, "read '%.8s' from the pipe", all->own + 4096);
	CHECK(registered_told(all) == 3, "the eventfd is not told of completions");
	/* What leaves its slot is told by its tag. */
	registered_put(all, 39, -1, NULL, 0);
	ring_take(&all->ring, 1234, 0);
	/* The first of the free slots for files without a place. */
	entry = ring_give(&all->ring, 2004);
	entry->opcode = IORING_OP_OPENAT;
	entry->fd = AT_FDCWD;
	entry->addr = (uint64_t) "/dev/null";
	entry->file_index = IORING_FILE_INDEX_ALLOC;
	ring_submit(&all->ring, 1);
	ring_take(&all->ring, 2004, 12);
	CHECK(ring_unread(&all->ring) == 0, "a completion from nowhere");
}

#endif
