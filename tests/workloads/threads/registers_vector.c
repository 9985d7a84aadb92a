/* The vector registers, as wide as this processor has them: SSE, AVX or AVX-512 with its mask registers. */
#include <pthread.h>

#include "workload.h"

volatile uint8_t vector_stop;
volatile uint8_t vector_entered;
/* 32 registers of 64 bytes and 8 masks, what goes in and what comes out. */
uint8_t vector_in[32 * 64 + 64] __attribute__((aligned(64)));
uint8_t vector_out[32 * 64 + 64] __attribute__((aligned(64)));

void vector_spin_sse(void);
void vector_spin_avx(void);
void vector_spin_avx512(void);
#define SPIN "movb $1, vector_entered(%rip)\n1: cmpb $0, vector_stop(%rip)\nje 1b\n"
__asm__(".text\n"
	".altmacro\n"
	".macro sse_load n\nmovaps vector_in+\\n*64(%rip), %xmm\\n\n.endm\n.macro sse_store n\nmovaps %xmm\\n, vector_out+\\n*64(%rip)\n.endm\n"
	".macro avx_load n\nvmovaps vector_in+\\n*64(%rip), %ymm\\n\n.endm\n.macro avx_store n\nvmovaps %ymm\\n, vector_out+\\n*64(%rip)\n.endm\n"
	".macro zmm_load n\nvmovdqu64 vector_in+\\n*64(%rip), %zmm\\n\n.endm\n.macro zmm_store n\nvmovdqu64 %zmm\\n, vector_out+\\n*64(%rip)\n.endm\n"
	".macro mask_load n\nkmovw vector_in+2048+\\n*8(%rip), %k\\n\n.endm\n.macro mask_store n\nkmovw %k\\n, vector_out+2048+\\n*8(%rip)\n.endm\n"
	".macro repeat op, last\n.set i, 0\n.rept \\last + 1\n\\op %i\n.set i, i + 1\n.endr\n.endm\n"
	"vector_spin_sse:\nrepeat sse_load, 15\n" SPIN "repeat sse_store, 15\nret\n"
	"vector_spin_avx:\nrepeat avx_load, 15\n" SPIN "repeat avx_store, 15\nvzeroupper\nret\n"
	"vector_spin_avx512:\nrepeat zmm_load, 31\nrepeat mask_load, 7\n" SPIN "repeat zmm_store, 31\nrepeat mask_store, 7\nvzeroupper\nret\n"
	".noaltmacro\n");

static void *spin(void *which)
{
	((void (*)(void))which)();
	return NULL;
}

int main(int argc, char **argv)
{
	bool zmm = __builtin_cpu_supports("avx512f"), ymm = __builtin_cpu_supports("avx");
	void (*which)(void) = zmm ? vector_spin_avx512 : ymm ? vector_spin_avx : vector_spin_sse;
	size_t width = zmm ? 64 : ymm ? 32 : 16;
	pthread_t thread;

	wl_init(argc, argv);
	wl_fill(vector_in, sizeof(vector_in), 21);
	MUST0(pthread_create(&thread, NULL, spin, (void *)which));
	WAIT_FOR(vector_entered, "the thread does not start");
	wl_ready();
	vector_stop = 1;
	MUST0(pthread_join(thread, NULL));
	if (wl_lose)
		vector_out[7 * 64 + width - 1] ^= 1;
	for (int i = 0; i < (zmm ? 32 : 16); i++)
		CHECK(memcmp(vector_in + i * 64, vector_out + i * 64, width) == 0, "vector register %d of %zu bytes differs", i, width);
	for (int i = 0; zmm && i < 8; i++)
		CHECK(memcmp(vector_in + 2048 + i * 8, vector_out + 2048 + i * 8, 2) == 0, "mask register k%d differs", i);
	wl_ok();
}
