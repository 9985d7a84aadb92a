/* A child in its parent's memory, without being a thread: it does its work when the parent lets it. */
#ifndef SHARER_H
#define SHARER_H

#include <sched.h>

#include "workload.h"

static char sharer_stack[65536] __attribute__((aligned(16)));
/* 1 for the child's, 2 when it has done its work. */
static volatile int sharer_turn;

static int sharer_child(void *work)
{
	while (sharer_turn == 0)
		wl_nap();
	/* Not exit(2), which ends a thread. */
	syscall(SYS_exit_group, ((int (*)(void))work)());
	return 0;
}

/* The work says by sharer_turn that it is done; its value is the child's exit status. */
static pid_t sharer_begin(int flags, int (*work)(void))
{
	return MUST(clone(sharer_child, sharer_stack + sizeof(sharer_stack), CLONE_VM | flags | SIGCHLD, work));
}

static void sharer_let(void)
{
	sharer_turn = 1;
	WAIT_FOR(sharer_turn == 2, "the two no longer share their memory");
}

static void sharer_handler(int signal)
{
	(void)signal;
}

WL_UNUSED static void sharer_set_action(void)
{
	struct sigaction action = { .sa_handler = sharer_handler };

	sigaction(SIGUSR2, &action, NULL);
}

WL_UNUSED static void sharer_check_action(void)
{
	struct sigaction action;

	MUST(sigaction(SIGUSR2, NULL, &action));
	CHECK(action.sa_handler == sharer_handler, "an action that the child set does not hold for the parent");
}

#endif
