/* A futex wait without a time limit; one wake must reach exactly this waiter. */
#include <linux/futex.h>

#include "blocked.h"

static uint32_t word = 5;

static long call(void)
{
	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 5, NULL, NULL, 0);
}

static void release(void)
{
	long woken = 0;

	/* The waiter may need a moment to fall asleep again. */
	for (int turn = 0; turn < 500 && woken == 0; turn++) {
		woken = MUST(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0));
		if (woken == 0)
			wl_sleep_ms(2);
	}
	CHECK(woken == 1 || wl_lose, "%ld waiters were woken", woken);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	blocked_main((struct blocked_call){ .number = SYS_futex, .call = call, .release = release, .result = 0 });
}
