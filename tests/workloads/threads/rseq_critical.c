/* A thread that is nearly always inside a restartable sequence: a per-processor counter whose commit must never be torn. */
#include <pthread.h>
#include <sys/rseq.h>

#include "workload.h"

static volatile bool stop;
/* Written by the commit of the sequence alone. */
static volatile uint64_t committed;
static uint64_t expected, aborted;

/* Adds one inside a restartable sequence that is a few hundred instructions long; false if the kernel aborted it. */
static bool add_one(struct rseq *area)
{
	__asm__ goto volatile(".pushsection __rseq_cs, \"aw\"\n"
			      ".balign 32\n"
			      "3: .long 0, 0\n"
			      ".quad 1f, (2f - 1f), 4f\n"
			      ".popsection\n"
			      "leaq 3b(%%rip), %%rax\n"
			      "movq %%rax, %[cs]\n"
			      "1: movq %[committed], %%rcx\n"
			      "movl $300, %%eax\n"
			      "5: decl %%eax\n"
			      "jnz 5b\n"
			      "cmpq $0, %[cs]\n"
			      "je %l[torn]\n"
			      "incq %%rcx\n"
			      "movq %%rcx, %[committed]\n"
			      "2:\n"
			      ".pushsection __rseq_failure, \"ax\"\n"
			      ".byte 0x0f, 0xb9, 0x3d\n"
			      ".long 0x53053053\n"
			      "4: jmp %l[abort]\n"
			      ".popsection\n"
			      :
			      : [cs] "m"(area->rseq_cs), [committed] "m"(committed)
			      : "rax", "rcx", "memory", "cc"
			      : abort, torn);
	return true;
torn:
	wl_fail("the kernel took the sequence for left, and did not abort it");
abort:
	return false;
}

static void *work(void *unused)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	(void)unused;
	while (!stop) {
		if (add_one(area))
			expected++;
		else
			aborted++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	uint64_t before;

	wl_init(argc, argv);
	CHECK(__rseq_size > 0, "glibc has not registered an rseq area");
	MUST0(pthread_create(&thread, NULL, work, NULL));
	wl_ready();
	before = committed;
	WAIT_FOR(committed > before + 1000, "the thread does not go on");
	stop = true;
	MUST0(pthread_join(thread, NULL));
	if (wl_lose)
		committed--;
	printf("%lu committed, %lu aborted\n", committed, aborted);
	CHECK(committed == expected, "%lu commits, counted %lu", committed, expected);
	wl_ok();
}
