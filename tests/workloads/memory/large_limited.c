/* Much memory in a process that may write small files only: a signal tells who tries more. */
#include "numbered_pages.h"
#include <sys/resource.h>

#define SIZE (20l << 20)

int main(int argc, char **argv)
{
	struct rlimit limit;
	uint8_t *map;
	sigset_t waiting;

	wl_init(argc, argv);
	map = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill(map, 0, SIZE, 1);
	MUST(getrlimit(RLIMIT_FSIZE, &limit));
	limit.rlim_cur = 1 << 20;
	MUST(setrlimit(RLIMIT_FSIZE, &limit));
	MUST(sigemptyset(&waiting));
	MUST(sigaddset(&waiting, SIGXFSZ));
	MUST(sigprocmask(SIG_BLOCK, &waiting, NULL));

	wl_ready();
	if (wl_lose)
		raise(SIGXFSZ);
	MUST(sigpending(&waiting));
	CHECK(!sigismember(&waiting, SIGXFSZ), "it has tried to write a large file");
	check(map, 0, SIZE, 1);
	wl_ok();
}
