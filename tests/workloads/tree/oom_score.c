/* oom_score_adj: raised in a child, as before in the root. */
#include "workload.h"

static int score(void)
{
	char text[32];

	wl_read_file("/proc/self/oom_score_adj", text, sizeof(text));
	return atoi(text);
}

static void set_score(const char *text)
{
	int fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

int main(int argc, char **argv)
{
	int before;
	pid_t child;

	wl_init(argc, argv);
	before = score();
	child = wl_fork();
	if (child == 0) {
		set_score("345");
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			set_score("346");
		CHECK(score() == 345, "the child's is %d", score());
		_exit(0);
	}
	wl_ready();
	CHECK(score() == before, "the root's was %d, is %d", before, score());
	wl_join(child);
	wl_ok();
}
