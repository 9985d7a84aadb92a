// peer: no, it cannot carry overlays
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
/* An overlay of directories in memory, with an open file of each layer and one that was copied up. */
#include "mounts.h"

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		int lower, upper, copied;

		own_root();
		mounted("tmpfs", "/layers", 0, NULL);
		directory("/layers/l");
		directory("/layers/u");
		directory("/layers/w");
		put("/layers/l/lower", "lower");
		put("/layers/l/copied", "copied");
		put("/layers/l/gone", "gone");
		directory("/merged");
		MUST(mount("overlay", "/merged", "overlay", 0, "lowerdir=/layers/l,upperdir=/layers/u,workdir=/layers/w"));
		put("/merged/upper", "upper");
		MUST(unlink("/merged/gone"));
		lower = MUST(open("/merged/lower", O_RDONLY));
		upper = MUST(open("/merged/upper", O_RDWR));
		copied = MUST(open("/merged/copied", O_RDWR));
		MUST(pwrite(copied, "COPIED", 6, 0));
		MUST(chdir("/merged"));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			put("lower", "lost");
		CHECK(reads(lower, "lower") && reads(upper, "upper") && reads(copied, "COPIED"), "an open file has changed");
		CHECK(holds("lower", "lower") && holds("copied", "COPIED"), "a file has changed");
		CHECK(access("gone", F_OK) < 0 && holds("/layers/l/gone", "gone"), "the deleted file is back");
		CHECK(holds("/layers/l/copied", "copied") && holds("/layers/u/copied", "COPIED"), "the layers have changed");
		put("new", "new");
		CHECK(holds("/layers/u/new", "new"), "new files go elsewhere");
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
