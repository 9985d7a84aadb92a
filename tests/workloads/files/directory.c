/* Open directories: as a place for *at calls, and half read. */
#include <dirent.h>

#include "workload.h"

#define COUNT 40

int main(int argc, char **argv)
{
	int seen[COUNT] = { 0 }, total = 0, place;
	struct dirent *entry;
	DIR *reading;

	wl_init(argc, argv);
	MUST(mkdir(wl_path("directory"), 0755));
	place = MUST(open(wl_path("directory"), O_RDONLY | O_DIRECTORY));
	for (int i = 0; i < COUNT; i++) {
		char name[16];

		snprintf(name, sizeof(name), "entry%d", i);
		close(MUST(openat(place, name, O_CREAT | O_WRONLY, 0600)));
	}
	reading = opendir(wl_path("directory"));
	CHECK(reading, "opendir: %s", strerror(errno));
	/* Half of it, so that the library's buffer has been filled once and the kernel's position moved. */
	for (int i = 0; i < COUNT / 2 && (entry = readdir(reading)); i++)
		if (sscanf(entry->d_name, "entry%d", &total) == 1)
			seen[total]++;

	wl_ready();
	if (wl_lose)
		rewinddir(reading);
	while ((entry = readdir(reading)))
		if (sscanf(entry->d_name, "entry%d", &total) == 1)
			seen[total]++;
	for (int i = 0; i < COUNT; i++)
		CHECK(seen[i] == 1, "entry %d was read %d times", i, seen[i]);
	CHECK(faccessat(place, "entry7", F_OK, 0) == 0, "the open directory is another place");
	CHECK(unlinkat(place, "entry7", 0) == 0 && access(wl_path("directory/entry7"), F_OK) < 0, "an entry cannot be removed through it");
	wl_ok();
}
