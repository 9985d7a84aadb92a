/*
 * A thread that sleeps inside one system call across the checkpoint. The call must still be asleep afterwards, must go on
 * until it is released or its time is up, and must then give its ordinary result: an interruption by the checkpoint must not
 * show. With --lose the thread gets a signal whose handler does not restart calls, so that the interruption does show.
 */
#ifndef BLOCKED_H
#define BLOCKED_H

#include <pthread.h>

#include "workload.h"

struct blocked_call {
	/* The system call's number as /proc/PID/syscall shows it. */
	long number;
	/* Makes the call, once, and returns what it returned. */
	long (*call)(void);
	/* Makes the call return; none for a call whose time runs out by itself. */
	void (*release)(void);
	/* What it must return. */
	long result;
	/* The errno that it must set when `result` is -1. */
	int error;
	/* What --lose does, instead of a signal to the thread. */
	void (*lose)(void);
	/* For a timed call: how long it lasts in all, in milliseconds of the monotonic clock. */
	long duration_ms;
};

static struct blocked_call blocked;
static pid_t blocked_tid;
static volatile bool blocked_done;
static long blocked_result, blocked_began_ms, blocked_took_ms;
static long blocked_noted_ms, blocked_lost_ms;
static int blocked_errno;

static void *blocked_thread(void *unused)
{
	(void)unused;
	blocked_tid = wl_gettid();
	blocked_began_ms = wl_now_ms(CLOCK_MONOTONIC);
	errno = 0;
	blocked_result = blocked.call();
	blocked_errno = errno;
	blocked_took_ms = wl_now_ms(CLOCK_MONOTONIC) - blocked_began_ms;
	blocked_done = true;
	return NULL;
}

static void blocked_ignore(int signal)
{
	(void)signal;
}

/*
 * A timed call is two thirds over when the checkpoint comes. It must not end before its time, and it must not begin anew:
 * beyond its time it may last as long as the process was frozen or the machine was too busy to run it.
 */
static void blocked_check_time(void)
{
	long limit = blocked.duration_ms + blocked_lost_ms + blocked.duration_ms / 3;

	CHECK(blocked_took_ms >= blocked.duration_ms - 20, "the call ended after %ld ms of %ld", blocked_took_ms, blocked.duration_ms);
	CHECK(blocked_took_ms <= limit, "the call of %ld ms lasted %ld ms (frozen or kept waiting for %ld): it began anew",
	      blocked.duration_ms, blocked_took_ms, blocked_lost_ms);
}

/* Called every 2 ms while the call lasts: adds up how long this thread did not run that should have. */
static bool blocked_note(bool is_over)
{
	long now = wl_now_ms(CLOCK_MONOTONIC);

	if (blocked_noted_ms && now - blocked_noted_ms > 10)
		blocked_lost_ms += now - blocked_noted_ms;
	/* What comes after the call made nothing late. */
	blocked_noted_ms = blocked_done ? 0 : now;
	return is_over;
}

__attribute__((noreturn)) static void blocked_main(struct blocked_call what)
{
	struct sigaction action = { .sa_handler = blocked_ignore };
	pthread_t thread;

	blocked = what;
	MUST(sigaction(SIGUSR1, &action, NULL));
	MUST0(pthread_create(&thread, NULL, blocked_thread, NULL));
	WAIT_FOR(blocked_tid, "the thread does not start");
	wl_wait_blocked(blocked_tid, what.number);
	if (what.duration_ms)
		wl_sleep_ms(what.duration_ms * 2 / 3 - (wl_now_ms(CLOCK_MONOTONIC) - blocked_began_ms));

	if (what.duration_ms) {
		wl_say("ready\n");
		while (!blocked_note(wl_told_to_go()))
			wl_sleep_ms(2);
	} else {
		wl_ready();
	}
	if (wl_lose) {
		if (what.lose)
			what.lose();
		else
			MUST0(pthread_kill(thread, SIGUSR1));
		for (int turn = 0; turn < 100 && !blocked_done; turn++)
			wl_sleep_ms(2);
	} else if (!what.duration_ms) {
		wl_sleep_ms(20);
		CHECK(!blocked_done, "the call returned %ld (%s) before anything had happened", blocked_result, strerror(blocked_errno));
	}
	if (what.release)
		what.release();
	WAIT_FOR(blocked_note(blocked_done), "the call does not return");
	CHECK(blocked_result == what.result && (what.result != -1 || blocked_errno == what.error), "the call returned %ld (%s), should be %ld (%s)",
	      blocked_result, strerror(blocked_errno), what.result, strerror(what.error));
	if (what.duration_ms)
		blocked_check_time();
	wl_ok();
}

#endif
