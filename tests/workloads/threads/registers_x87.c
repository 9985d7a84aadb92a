/* The x87 stack and its control word, and the SSE control register, in a thread that spins. */
#include <pthread.h>

#include "workload.h"

static volatile uint8_t stop, entered;
static long double out[3];
static uint16_t control_out;
static uint32_t mxcsr_out;
/* Round up, double precision, all exceptions masked; flush to zero, round down, all masked. */
static const uint16_t control_in = 0x0a7f;
static const uint32_t mxcsr_in = 0xbf80;

static void *spin(void *unused)
{
	(void)unused;
	__asm__ volatile("fninit\n"
			 "fldcw %[control]\n"
			 "ldmxcsr %[mxcsr]\n"
			 "fldpi\n"
			 "fldl2e\n"
			 "fldln2\n"
			 "movb $1, %[entered]\n"
			 "1: cmpb $0, %[stop]\n"
			 "je 1b\n"
			 "fstpt %[third]\n"
			 "fstpt %[second]\n"
			 "fstpt %[first]\n"
			 "fnstcw %[control_out]\n"
			 "stmxcsr %[mxcsr_out]\n"
			 "fninit\n"
			 : [entered] "=m"(entered), [first] "=m"(out[0]), [second] "=m"(out[1]), [third] "=m"(out[2]),
			   [control_out] "=m"(control_out), [mxcsr_out] "=m"(mxcsr_out)
			 : [control] "m"(control_in), [mxcsr] "m"(mxcsr_in), [stop] "m"(stop)
			 : "memory");
	return NULL;
}

int main(int argc, char **argv)
{
	static const long double expected[] = { 3.14159265358979323846264338327950288L, 1.44269504088896340735992468100189214L,
						0.693147180559945309417232121458176568L };
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, spin, NULL));
	WAIT_FOR(entered, "the thread does not start");
	wl_ready();
	stop = 1;
	MUST0(pthread_join(thread, NULL));
	if (wl_lose)
		out[1] = 0;
	for (int i = 0; i < 3; i++) {
		long double off = out[i] - expected[i];

		CHECK(off < 1e-18L && off > -1e-18L, "x87 register %d is %.20Lf", i, out[i]);
	}
	CHECK(control_out == control_in, "the x87 control word is %#x", control_out);
	CHECK((mxcsr_out & ~0x3fu) == mxcsr_in, "mxcsr is %#x", mxcsr_out);
	wl_ok();
}
