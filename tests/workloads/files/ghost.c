/* Deleted files: contents, attributes, position; two opens of one deleted file, and one that is empty. */
#include "workload.h"

#define SIZE (100000 + 77)

int main(int argc, char **argv)
{
	static uint8_t content[SIZE];
	struct stat before, now, other;
	int writer, reader, empty;
	uint8_t byte;

	wl_init(argc, argv);
	writer = MUST(open(wl_path("deleted"), O_RDWR | O_CREAT, 0600));
	wl_fill(content, SIZE, 1);
	MUST(write(writer, content, SIZE));
	MUST(fchmod(writer, 04751));
	MUST(fchown(writer, 1000, 1001));
	MUST(fchmod(writer, 04751));
	MUST(lseek(writer, 50000, SEEK_SET));
	reader = MUST(open(wl_path("deleted"), O_RDONLY));
	MUST(lseek(reader, 33, SEEK_SET));
	MUST(futimens(writer, (struct timespec[]){ { 1000000, 5 }, { 2000000, 7 } }));
	MUST(unlink(wl_path("deleted")));
	empty = MUST(open(wl_path("empty"), O_WRONLY | O_CREAT, 0600));
	MUST(unlink(wl_path("empty")));
	MUST(fstat(writer, &before));

	wl_ready();
	if (wl_lose)
		MUST(ftruncate(writer, 10));
	MUST(fstat(writer, &now));
	MUST(fstat(reader, &other));
	CHECK(now.st_nlink == 0 && access(wl_path("deleted"), F_OK) < 0, "the deleted file has come back (%lu links)", now.st_nlink);
	CHECK(now.st_dev == other.st_dev && now.st_ino == other.st_ino, "two opens of one file have become two files");
	CHECK(now.st_size == SIZE && now.st_mode == before.st_mode && now.st_uid == 1000 && now.st_gid == 1001, "size %ld, mode %o, owner %d, group %d",
	      (long)now.st_size, now.st_mode, now.st_uid, now.st_gid);
	CHECK(now.st_mtim.tv_sec == 2000000, "its time is %ld", (long)now.st_mtim.tv_sec);
	CHECK(pread(reader, content, SIZE, 0) == SIZE && wl_differs(content, SIZE, 1) < 0, "contents differ at %zd", wl_differs(content, SIZE, 1));
	CHECK(lseek(writer, 0, SEEK_CUR) == 50000 && lseek(reader, 0, SEEK_CUR) == 33, "positions are %ld and %ld", (long)lseek(writer, 0, SEEK_CUR),
	      (long)lseek(reader, 0, SEEK_CUR));
	MUST(pwrite(writer, "W", 1, 5));
	CHECK(pread(reader, &byte, 1, 5) == 1 && byte == 'W', "a write through one open is not seen through the other");
	CHECK(write(reader, "x", 1) < 0, "the read-only open can be written");
	MUST(fstat(empty, &now));
	CHECK(now.st_size == 0 && now.st_nlink == 0, "the empty deleted file: %ld bytes, %lu links", (long)now.st_size, now.st_nlink);
	wl_ok();
}
