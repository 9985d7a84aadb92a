// peer: no, CRIU 4.2 knows no io_uring
/* An io_uring of one thread, which is not the first, with registered files, memory and an eventfd. */
#include <pthread.h>

#include "registered.h"

static bool set_up;

static void *work(void *nothing)
{
	struct registered all;

	registered_prepare(&all, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN);
	__atomic_store_n(&set_up, true, __ATOMIC_RELEASE);
	wl_wait();
	registered_check(&all);
	return nothing;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, work, NULL));
	WAIT_FOR(__atomic_load_n(&set_up, __ATOMIC_ACQUIRE), "the thread does not begin");
	wl_ready();
	MUST0(pthread_join(thread, NULL));
	wl_ok();
}
