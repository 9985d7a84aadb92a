/* A checkpoint leaves no trace on the files that are mapped or open: times, size, blocks, and what is written is kept. */
#include "workload.h"

int main(int argc, char **argv)
{
	static const char *const names[] = { "private", "shared", "open" };
	struct stat before[3], now;
	int fds[3];
	char *maps[2];

	wl_init(argc, argv);
	for (int i = 0; i < 3; i++) {
		fds[i] = MUST(open(wl_path(names[i]), O_RDWR | O_CREAT, 0640));
		MUST(ftruncate(fds[i], 8192));
		MUST(pwrite(fds[i], "data", 4, 100));
	}
	maps[0] = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[0], 0));
	maps[1] = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0));
	maps[0][0] = 'p';
	maps[1][0] = 's';
	MUST(msync(maps[1], 8192, MS_SYNC));
	for (int i = 0; i < 3; i++) {
		MUST(fsync(fds[i]));
		MUST(fstat(fds[i], &before[i]));
	}
	wl_sleep_ms(20);

	wl_ready();
	if (wl_lose)
		MUST(pwrite(fds[2], "more", 4, 0));
	for (int i = 0; i < 3; i++) {
		MUST(stat(wl_path(names[i]), &now));
		CHECK(memcmp(&now.st_mtim, &before[i].st_mtim, sizeof(now.st_mtim)) == 0 && memcmp(&now.st_ctim, &before[i].st_ctim, sizeof(now.st_ctim)) == 0,
		      "%s: times of change were %ld.%09ld and %ld.%09ld, are %ld.%09ld and %ld.%09ld", names[i], (long)before[i].st_mtim.tv_sec,
		      before[i].st_mtim.tv_nsec, (long)before[i].st_ctim.tv_sec, before[i].st_ctim.tv_nsec, (long)now.st_mtim.tv_sec, now.st_mtim.tv_nsec,
		      (long)now.st_ctim.tv_sec, now.st_ctim.tv_nsec);
		CHECK(now.st_size == 8192 && now.st_ino == before[i].st_ino, "%s: size %ld", names[i], (long)now.st_size);
	}
	CHECK(maps[0][0] == 'p' && maps[1][0] == 's' && maps[0][100] == 'd' && maps[1][100] == 'd', "contents differ");
	wl_ok();
}
