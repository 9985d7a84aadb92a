// peer: no, it needs to be told the root by --root
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
/* Mounts that share what is mounted upon them, within a mount namespace and with another of the tree. */
#include "mounts.h"

static bool is_mount(const char *path)
{
	return access(path, F_OK) == 0;
}

/* Mounts upon one, and says where that is seen. */
static void check(const char *upon, const char *name, const char *const seen[], const char *const unseen[])
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", upon, "d");
	mounted("tmpfs", path, 0, NULL);
	snprintf(path, sizeof(path), "%s/d/%s", upon, name);
	put(path, name);
	for (; *seen; seen++) {
		snprintf(path, sizeof(path), "%s/d/%s", *seen, name);
		CHECK(is_mount(path), "what is mounted on %s is not seen at %s", upon, *seen);
	}
	for (; *unseen; unseen++) {
		snprintf(path, sizeof(path), "%s/d/%s", *unseen, name);
		CHECK(!is_mount(path), "what is mounted on %s is seen at %s", upon, *unseen);
	}
	snprintf(path, sizeof(path), "%s/%s", upon, "d");
	MUST(umount(path));
}

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		pid_t grandchild;

		own_root();
		mounted("tmpfs", "/one", 0, NULL);
		directory("/one/d");
		changed("/one", MS_SHARED);
		bound("/one", "/peer");
		bound("/one", "/slave");
		changed("/slave", MS_SLAVE);
		bound("/slave", "/both");
		changed("/both", MS_SHARED);
		bound("/both", "/beyond");
		changed("/beyond", MS_SLAVE);
		bound("/one", "/apart");
		changed("/apart", MS_PRIVATE);
		directory("/one/part");
		directory("/one/part/d");
		bound("/one/part", "/part");
		grandchild = wl_fork();
		if (grandchild == 0) {
			MUST(unshare(CLONE_NEWNS));
			changed("/", MS_REC | MS_SLAVE);
			mounted("tmpfs", "/own", 0, NULL);
			put("/own/file", "of its own");
			MUST(chdir("/own"));
			wl_child_ready();
			wl_wait();
			CHECK(holds("/own/file", "of its own") && holds("file", "of its own"), "its own file system has changed");
			WAIT_FOR(is_mount("/one/d/told"), "the other namespace's mount");
			put("/one/d/heard", "");
			_exit(0);
		}
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			changed("/slave", MS_PRIVATE);
		CHECK(access("/own/file", F_OK) < 0, "the grandchild's file system is here as well");
		check("/one", "a", (const char *const[]){"/peer", "/slave", "/both", "/beyond", NULL},
		      (const char *const[]){"/apart", "/part", NULL});
		check("/slave", "b", (const char *const[]){NULL},
		      (const char *const[]){"/one", "/peer", "/both", "/beyond", "/apart", NULL});
		check("/both", "c", (const char *const[]){"/beyond", NULL},
		      (const char *const[]){"/one", "/peer", "/slave", NULL});
		check("/beyond", "d", (const char *const[]){NULL}, (const char *const[]){"/one", "/both", NULL});
		check("/part", "e", (const char *const[]){"/one/part", "/slave/part", NULL},
		      (const char *const[]){"/apart/part", NULL});
		mounted("tmpfs", "/one/d", 0, NULL);
		put("/one/d/told", "");
		WAIT_FOR(is_mount("/one/d/heard"), "the other namespace's answer");
		close(MUST(creat("/go-on", 0600)));
		wl_join(grandchild);
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
