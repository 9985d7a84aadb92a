/* An io_uring by bare system calls, with the program's own copies of its indices, as libraries keep them. */
#ifndef RING_H
#define RING_H

#include <linux/io_uring.h>

#include "workload.h"

/* Newer than the headers of some systems. */
#define RING_NO_SQARRAY (1u << 16)

struct ring {
	int fd;
	struct io_uring_params params;
	uint8_t *rings;
	struct io_uring_sqe *entries;
	/* The next request to give, and the next completion to take, counted from the beginning. */
	uint32_t given, taken;
};

WL_UNUSED static uint32_t ring_word(struct ring *ring, uint32_t offset)
{
	return __atomic_load_n((uint32_t *)(ring->rings + offset), __ATOMIC_ACQUIRE);
}

WL_UNUSED static void ring_put(struct ring *ring, uint32_t offset, uint32_t value)
{
	__atomic_store_n((uint32_t *)(ring->rings + offset), value, __ATOMIC_RELEASE);
}

WL_UNUSED static void ring_make(struct ring *ring, unsigned entries, unsigned flags)
{
	struct io_uring_params *params = &ring->params;
	size_t size, array;

	memset(ring, 0, sizeof(*ring));
	params->flags = flags;
	ring->fd = MUST(syscall(SYS_io_uring_setup, entries, params));
	CHECK(params->features & IORING_FEAT_SINGLE_MMAP, "the kernel wants two ring mappings");
	size = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	array = params->sq_off.array + params->sq_entries * 4;
	ring->rings = MUST(mmap(NULL, size > array ? size : array, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
				IORING_OFF_SQ_RING));
	ring->entries = MUST(mmap(NULL, params->sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES));
}

/* The entry for the next request, which is a NOP until it is made something else. */
WL_UNUSED static struct io_uring_sqe *ring_give(struct ring *ring, uint64_t tag)
{
	uint32_t slot = ring->given & (ring->params.sq_entries - 1);

	CHECK(ring->given - ring_word(ring, ring->params.sq_off.head) < ring->params.sq_entries, "the queue of requests is full");
	if (!(ring->params.flags & RING_NO_SQARRAY))
		ring_put(ring, ring->params.sq_off.array + 4 * slot, slot);
	ring->given++;
	memset(&ring->entries[slot], 0, sizeof(ring->entries[slot]));
	ring->entries[slot].user_data = tag;
	return &ring->entries[slot];
}

/* Has the kernel take what was given, and waits for so many completions. */
WL_UNUSED static void ring_submit(struct ring *ring, unsigned wait)
{
	unsigned count = ring->given - ring_word(ring, ring->params.sq_off.head);
	long done;

	ring_put(ring, ring->params.sq_off.tail, ring->given);
	done = syscall(SYS_io_uring_enter, ring->fd, count, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
	CHECK(done == count, "%ld of %u requests are taken: %s", done, count, strerror(errno));
	CHECK(ring_word(ring, ring->params.sq_off.head) == ring->given, "the kernel counts %u requests, not %u",
	      ring_word(ring, ring->params.sq_off.head), ring->given);
}

WL_UNUSED static uint32_t ring_unread(struct ring *ring)
{
	return ring_word(ring, ring->params.cq_off.tail) - ring->taken;
}

/* The next completion must be this one. */
WL_UNUSED static void ring_take(struct ring *ring, uint64_t tag, int result)
{
	struct io_uring_cqe *all = (struct io_uring_cqe *)(ring->rings + ring->params.cq_off.cqes);
	struct io_uring_cqe *next = &all[ring->taken & (ring->params.cq_entries - 1)];

	CHECK(ring_unread(ring) > 0, "completion %llu is lost", (unsigned long long)tag);
	CHECK(next->user_data == tag && next->res == result, "a completion of request %llu with %d, expected %llu with %d",
	      (unsigned long long)next->user_data, next->res, (unsigned long long)tag, result);
	ring_put(ring, ring->params.cq_off.head, ++ring->taken);
}

WL_UNUSED static void ring_read(struct ring *ring, uint64_t tag, int fd, void *buffer, unsigned size, uint64_t offset)
{
	struct io_uring_sqe *entry = ring_give(ring, tag);

	entry->opcode = IORING_OP_READ;
	entry->fd = fd;
	entry->addr = (uint64_t)buffer;
	entry->len = size;
	entry->off = offset;
}

#endif
