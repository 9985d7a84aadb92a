// peer: no, CRIU 4.2 needs CAP_SYS_RESOURCE to read the limits of another user's process
/* Credentials of processes: all eight ids, supplementary groups, capability sets, securebits, keep-caps. */
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

#include "workload.h"

static void describe(char *text, size_t size)
{
	static const char *const fields[] = { "\nUid:", "\nGid:", "\nGroups:", "\nCapInh:", "\nCapPrm:", "\nCapEff:", "\nCapBnd:", "\nCapAmb:" };
	char status[8192];
	size_t used = 0;

	wl_read_file("/proc/self/status", status, sizeof(status));
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		char *line = strstr(status, fields[i]);

		if (line)
			used += snprintf(text + used, size - used, "%.*s", (int)strcspn(line + 1, "\n") + 1, line);
	}
	snprintf(text + used, size - used, "\nsecurebits %#x keepcaps %d", prctl(PR_GET_SECUREBITS), prctl(PR_GET_KEEPCAPS));
}

/* The kinds of process: each sets its credentials. */
static void become(int kind)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2];
	gid_t many[40];

	MUST(syscall(SYS_capget, &header, caps));
	switch (kind) {
	case 0: /* An ordinary user with many groups. */
		for (int i = 0; i < 40; i++)
			many[i] = 2000 + i * 3;
		MUST(setgroups(40, many));
		MUST(setresgid(1001, 1001, 1001));
		MUST(setresuid(1002, 1002, 1002));
		break;
	case 1: /* All ids different, still privileged by its saved id. */
		MUST(setresgid(11, 12, 13));
		setfsgid(14);
		MUST(setresuid(0, 22, 0));
		setfsuid(24);
		break;
	case 2: /* Dropped from the bounding set, limited, with an ambient capability kept through a change of user. */
		MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED));
		MUST(setresuid(1003, 1003, 1003));
		memset(caps, 0, sizeof(caps));
		caps[0].permitted = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_CHOWN | 1u << CAP_KILL;
		caps[0].effective = 1u << CAP_CHOWN;
		caps[0].inheritable = 1u << CAP_NET_BIND_SERVICE;
		MUST(syscall(SYS_capset, &header, caps));
		MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
		break;
	case 3: /* Root that will keep its capabilities when it turns into a user. */
		MUST(prctl(PR_SET_KEEPCAPS, 1));
		MUST(setgroups(0, NULL));
		break;
	}
}

int main(int argc, char **argv)
{
	char before[4096], now[4096];
	pid_t children[4];

	wl_init(argc, argv);
	for (int kind = 0; kind < 4; kind++) {
		children[kind] = wl_fork();
		if (children[kind] != 0)
			continue;
		become(kind);
		describe(before, sizeof(before));
		wl_child_ready();
		wl_wait();
		if (wl_lose && kind == 2)
			MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
		describe(now, sizeof(now));
		CHECK(strcmp(before, now) == 0, "kind %d had%s\nhas%s", kind, before, now);
		_exit(0);
	}
	describe(before, sizeof(before));
	wl_ready();
	describe(now, sizeof(now));
	CHECK(strcmp(before, now) == 0, "the root process had%s\nhas%s", before, now);
	for (int kind = 0; kind < 4; kind++)
		wl_join(children[kind]);
	wl_ok();
}
