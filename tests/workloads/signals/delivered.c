/* A stream of real-time signals into a handler: whatever the moment of the freeze, none is lost, none doubled. */
// differs: mapping content.*, signals come wherever it is, and their frames reach into what is live elsewhere
#include <sys/mman.h>

#include "workload.h"

/* How many signals may wait: those queued count for all processes of the user. */
#define AT_MOST 1000

static volatile int *received, out_of_order;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	if (info->si_value.sival_int != *received)
		out_of_order++;
	*received = info->si_value.sival_int + 1;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	pid_t sender, target = getpid();
	int sent;

	wl_init(argc, argv);
	received = mmap(NULL, sizeof(*received), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(received != MAP_FAILED, "mmap");
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	sender = wl_fork();
	if (sender == 0) {
		wl_child_ready();
		for (sent = 0; !wl_told_to_go(); sent++) {
			while (sent - *received >= AT_MOST && !wl_told_to_go())
				wl_sleep_ms(1);
			while (sigqueue(target, SIGRTMIN + 1, (union sigval){ .sival_int = sent }) < 0 && errno == EAGAIN)
				wl_sleep_ms(1);
			if (sent % 50 == 0)
				wl_sleep_ms(1);
		}
		_exit(0);
	}
	wl_ready();
	wl_join(sender);
	if (wl_lose)
		out_of_order++;
	CHECK(*received > 0, "no signal arrived");
	CHECK(out_of_order == 0, "%d of %d signals came out of order", out_of_order, *received);
	wl_ok();
}
