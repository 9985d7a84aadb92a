/* Three generations, with the pids, parents, groups and sessions of all of them, and a child's exit afterwards. */
#include "workload.h"

struct ids {
	pid_t pid, parent, group, session;
};

static struct ids own_ids(void)
{
	return (struct ids){ getpid(), getppid(), getpgid(0), getsid(0) };
}

static void verify(struct ids before, const char *who)
{
	struct ids now = own_ids();

	/* Who restores us is our parent's successor. */
	if (now.pid == now.session)
		now.parent = before.parent;

	CHECK(memcmp(&before, &now, sizeof(now)) == 0, "%s: pid, parent, group, session were %d %d %d %d, are %d %d %d %d", who, before.pid,
	      before.parent, before.group, before.session, now.pid, now.parent, now.group, now.session);
}

/* Branches of the family: each node has `width` children, down to depth 0. */
static void node(int depth, int width, bool root)
{
	pid_t children[4];
	struct ids before;

	for (int i = 0; i < width && depth > 0; i++) {
		children[i] = wl_fork();
		if (children[i] == 0) {
			/* The first child of each leads a group of its own, into which its children are born. */
			if (i == 0)
				MUST(setpgid(0, 0));
			node(depth - 1, width, false);
		}
	}
	before = own_ids();
	if (root)
		wl_ready();
	else
		wl_child_ready(), wl_wait();
	if (wl_lose && depth == 0 && before.group != before.session)
		setpgid(0, before.session);
	verify(before, root ? "root" : depth ? "child" : "leaf");
	for (int i = 0; i < width && depth > 0; i++)
		wl_join(children[i]);
	if (!root)
		_exit(0);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	node(2, 3, true);
	wl_ok();
}
