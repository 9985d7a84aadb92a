/* Every function of the vdso that libc has found: each still gives what the kernel says. No thread stands inside of one. */
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/time.h>

#include "workload.h"

static const char *const names[] = { "__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_clock_getres", "__vdso_getcpu" };
static uintptr_t functions[5];

/* Notes the functions' addresses, as libc does when a program starts. */
static void find_functions(uintptr_t vdso)
{
	const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)vdso;
	const ElfW(Phdr) *segments = (const ElfW(Phdr) *)(vdso + header->e_phoff);
	const ElfW(Sym) *symbols = NULL;
	const char *strings = NULL;

	for (int i = 0; i < header->e_phnum; i++) {
		if (segments[i].p_type != PT_DYNAMIC)
			continue;
		for (const ElfW(Dyn) *entry = (const ElfW(Dyn) *)(vdso + segments[i].p_offset); entry->d_tag != DT_NULL; entry++) {
			if (entry->d_tag == DT_SYMTAB)
				symbols = (const ElfW(Sym) *)(vdso + entry->d_un.d_ptr);
			if (entry->d_tag == DT_STRTAB)
				strings = (const char *)(vdso + entry->d_un.d_ptr);
		}
	}
	CHECK(symbols && strings, "the vdso has no symbols");
	for (const ElfW(Sym) *symbol = symbols; (const char *)symbol < strings; symbol++)
		for (size_t i = 0; i < 5; i++)
			if (strcmp(strings + symbol->st_name, names[i]) == 0)
				functions[i] = vdso + symbol->st_value;
	for (size_t i = 0; i < 5; i++)
		CHECK(functions[i], "the vdso has no %s", names[i]);
}

static void crashed(int signal, siginfo_t *info, void *context)
{
	(void)context;
	wl_fail("signal %d at %p: the vdso is not usable", signal, info->si_addr);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = crashed, .sa_flags = SA_SIGINFO };
	uintptr_t vdso = getauxval(AT_SYSINFO_EHDR);
	unsigned processor = -1u, node = -1u;
	struct timespec by_kernel, by_vdso;
	struct timeval day;
	time_t second;

	wl_init(argc, argv);
	CHECK(vdso, "there is no vdso");
	find_functions(vdso);
	MUST(sigaction(SIGSEGV, &action, NULL));
	MUST(sigaction(SIGTRAP, &action, NULL));
	MUST(sigaction(SIGILL, &action, NULL));
	wl_ready();

	if (wl_lose)
		MUST(munmap((void *)(vdso & ~4095ul), 4096));
	MUST(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_kernel));
	CHECK(((int (*)(clockid_t, struct timespec *))functions[0])(CLOCK_MONOTONIC, &by_vdso) == 0, "clock_gettime failed");
	CHECK(by_vdso.tv_sec - by_kernel.tv_sec <= 1 && by_vdso.tv_sec >= by_kernel.tv_sec, "the vdso says %ld s, the kernel %ld s",
	      (long)by_vdso.tv_sec, (long)by_kernel.tv_sec);
	MUST(syscall(SYS_clock_gettime, CLOCK_REALTIME, &by_kernel));
	CHECK(((int (*)(struct timeval *, void *))functions[1])(&day, NULL) == 0 && labs(day.tv_sec - by_kernel.tv_sec) <= 1, "gettimeofday is off");
	second = ((time_t(*)(time_t *))functions[2])(NULL);
	CHECK(labs(second - by_kernel.tv_sec) <= 1, "time is off");
	CHECK(((int (*)(clockid_t, struct timespec *))functions[3])(CLOCK_MONOTONIC, &by_vdso) == 0 && by_vdso.tv_nsec == 1, "clock_getres is off");
	CHECK(((long (*)(unsigned *, unsigned *, void *))functions[4])(&processor, &node, NULL) == 0 && processor < 8192, "getcpu is off");
	CHECK(labs(time(NULL) - by_kernel.tv_sec) <= 1 && wl_now_ms(CLOCK_REALTIME) / 1000 - by_kernel.tv_sec <= 1, "libc's clocks are off");
	wl_ok();
}
