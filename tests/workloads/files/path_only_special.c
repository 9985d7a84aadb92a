// peer: no, CRIU 4.2 asks for the data in the FIFO and fails, and loses O_DIRECTORY
/* O_PATH of a FIFO and of a device: places, neither read nor waited for; and with O_DIRECTORY, which F_GETFL shows. */
#include "workload.h"

int main(int argc, char **argv)
{
	struct stat status;
	int fifo, device, directory;

	wl_init(argc, argv);
	MUST(mkfifo(wl_path("fifo"), 0600));
	fifo = MUST(open(wl_path("fifo"), O_PATH));
	device = MUST(open("/dev/null", O_PATH | O_CLOEXEC));
	directory = MUST(open(wl_dir, O_PATH | O_DIRECTORY));

	wl_ready();
	if (wl_lose)
		MUST(dup2(device, fifo));
	MUST(fstat(fifo, &status));
	CHECK(S_ISFIFO(status.st_mode) && (fcntl(fifo, F_GETFL) & O_PATH), "the FIFO: mode %o, flags %#o", status.st_mode, fcntl(fifo, F_GETFL));
	MUST(fstat(device, &status));
	CHECK(S_ISCHR(status.st_mode) && (fcntl(device, F_GETFL) & O_PATH), "the device: mode %o, flags %#o", status.st_mode, fcntl(device, F_GETFL));
	CHECK((fcntl(directory, F_GETFL) & (O_PATH | O_DIRECTORY)) == (O_PATH | O_DIRECTORY), "the directory: flags %#o", fcntl(directory, F_GETFL));
	CHECK(open(wl_path("fifo"), O_WRONLY | O_NONBLOCK) < 0 && errno == ENXIO, "the FIFO has a reader");
	wl_ok();
}
