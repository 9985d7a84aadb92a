// peer: no, it needs to be told the root by --root
// checkpoint-flags: --skip-mnt /dropped
// differs: descriptor fdinfo.mnt_id, mounts are made anew
// differs: descriptor fdinfo.ino, files in memory are made anew
// differs: descriptor file.device, file systems in memory are made anew
// differs: process mount./dropped*, it is to be left out
/* A mount that is to be left out, with another upon it; the tree comes back without, and with all others. */
#include "mounts.h"

int main(int argc, char **argv)
{
	pid_t child;

	wl_init(argc, argv);
	child = wl_fork();
	if (child == 0) {
		struct stat before, now;
		int file;

		own_root();
		directory("/dropped");
		put("/dropped/hidden", "below");
		MUST(stat("/dropped", &before));
		mounted("tmpfs", "/kept", 0, NULL);
		put("/kept/file", "kept");
		mounted("tmpfs", "/dropped", 0, NULL);
		mounted("tmpfs", "/dropped/upon", 0, NULL);
		put("/dropped/upon/file", "upon it");
		file = MUST(open("/kept/file", O_RDONLY));
		wl_child_ready();
		wl_wait();
		if (wl_lose)
			MUST(umount2("/kept", MNT_DETACH));
		CHECK(holds("/kept/file", "kept") && reads(file, "kept"), "what is to stay has changed");
		MUST(stat("/dropped", &now));
		/* Where it only goes on, it is there still. */
		if (now.st_dev == before.st_dev)
			CHECK(holds("/dropped/hidden", "below"), "what was hidden has changed");
		else
			CHECK(holds("/dropped/upon/file", "upon it"), "what is there still has changed");
		_exit(0);
	}
	wl_ready();
	wl_join(child);
	wl_ok();
}
