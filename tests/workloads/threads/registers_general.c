/* Every general register and the red zone below the stack pointer, in a thread that spins and makes no call. */
#include <pthread.h>

#include "workload.h"

volatile uint8_t registers_stop;
volatile uint8_t registers_entered;
uint64_t registers_found[15];
uint64_t registers_red_zone;

/* Fills the registers, spins on the flag, and stores what it finds. */
void registers_spin(void);
__asm__(".text\n.globl registers_spin\nregisters_spin:\n"
	"push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"movabs $0x1111111111111111, %rax; movabs $0x2222222222222222, %rbx; movabs $0x3333333333333333, %rcx\n"
	"movabs $0x4444444444444444, %rdx; movabs $0x5555555555555555, %rsi; movabs $0x6666666666666666, %rdi\n"
	"movabs $0x7777777777777777, %rbp; movabs $0x8888888888888888, %r8; movabs $0x9999999999999999, %r9\n"
	"movabs $0xaaaaaaaaaaaaaaaa, %r10; movabs $0xbbbbbbbbbbbbbbbb, %r11; movabs $0xcccccccccccccccc, %r12\n"
	"movabs $0xdddddddddddddddd, %r13; movabs $0xeeeeeeeeeeeeeeee, %r14; movabs $0xf0f0f0f0f0f0f0f0, %r15\n"
	"mov %rbp, -8(%rsp); mov %rbp, -128(%rsp)\n"
	"movb $1, registers_entered(%rip)\n"
	"1: cmpb $0, registers_stop(%rip)\n"
	"je 1b\n"
	"mov %rax, registers_found(%rip); mov %rbx, 8+registers_found(%rip); mov %rcx, 16+registers_found(%rip)\n"
	"mov %rdx, 24+registers_found(%rip); mov %rsi, 32+registers_found(%rip); mov %rdi, 40+registers_found(%rip)\n"
	"mov %rbp, 48+registers_found(%rip); mov %r8, 56+registers_found(%rip); mov %r9, 64+registers_found(%rip)\n"
	"mov %r10, 72+registers_found(%rip); mov %r11, 80+registers_found(%rip); mov %r12, 88+registers_found(%rip)\n"
	"mov %r13, 96+registers_found(%rip); mov %r14, 104+registers_found(%rip); mov %r15, 112+registers_found(%rip)\n"
	"mov -8(%rsp), %rax; and -128(%rsp), %rax; mov %rax, registers_red_zone(%rip)\n"
	"pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	"ret\n");

static void *spin(void *unused)
{
	(void)unused;
	registers_spin();
	return NULL;
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
	pthread_t thread;

	wl_init(argc, argv);
	MUST0(pthread_create(&thread, NULL, spin, NULL));
	WAIT_FOR(registers_entered, "the thread does not start");
	wl_ready();
	registers_stop = 1;
	MUST0(pthread_join(thread, NULL));
	if (wl_lose)
		registers_found[4]++;
	for (int i = 0; i < 15; i++) {
		uint64_t expected = i == 14 ? 0xf0f0f0f0f0f0f0f0ul : 0x1111111111111111ul * (i + 1);

		CHECK(registers_found[i] == expected, "%s is %#lx, should be %#lx", names[i], registers_found[i], expected);
	}
	CHECK(registers_red_zone == 0x7777777777777777, "the red zone was written to: %#lx", registers_red_zone);
	wl_ok();
}
