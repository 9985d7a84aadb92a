/* Resource limits, all of them lowered in its own way; what a limit forbids stays forbidden. */
#include <sys/resource.h>

#include "workload.h"

int main(int argc, char **argv)
{
	struct rlimit limits[RLIM_NLIMITS], now;

	wl_init(argc, argv);
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		MUST(getrlimit(i, &limits[i]));
		if (i == RLIMIT_NPROC || i == RLIMIT_AS || i == RLIMIT_DATA || i == RLIMIT_STACK || i == RLIMIT_SIGPENDING)
			continue;
		/* Hard limits can only go down. */
		if (limits[i].rlim_max > 4000000 + (unsigned)i)
			limits[i].rlim_max = 4000000 + i;
		if (limits[i].rlim_max > 3000)
			limits[i].rlim_cur = i == RLIMIT_CPU ? RLIM_INFINITY : limits[i].rlim_max - 1000 - i;
		if (limits[i].rlim_cur > limits[i].rlim_max)
			limits[i].rlim_cur = limits[i].rlim_max;
		MUST(setrlimit(i, &limits[i]));
	}
	limits[RLIMIT_NOFILE].rlim_cur = 100;
	MUST(setrlimit(RLIMIT_NOFILE, &limits[RLIMIT_NOFILE]));

	wl_ready();
	if (wl_lose) {
		now = limits[RLIMIT_CORE];
		now.rlim_cur = 1;
		MUST(setrlimit(RLIMIT_CORE, &now));
	}
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		MUST(getrlimit(i, &now));
		CHECK(now.rlim_cur == limits[i].rlim_cur && now.rlim_max == limits[i].rlim_max, "limit %d was %ld and %ld, is %ld and %ld", i,
		      (long)limits[i].rlim_cur, (long)limits[i].rlim_max, (long)now.rlim_cur, (long)now.rlim_max);
	}
	CHECK(dup2(0, 100) < 0 && errno == EBADF, "a descriptor above the limit can be had");
	wl_ok();
}
