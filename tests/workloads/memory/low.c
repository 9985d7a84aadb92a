/* Memory at low addresses, where programs have some that are not position-independent, with room between: there the
 * checkpointer has things of its own in the process for a while, which no image may have. */
#include "workload.h"

#define PAGES 64
#define PAGE 4096

static char *const LOW[] = { (char *)0x2000000, (char *)0x30000000 };

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	for (int area = 0; area < 2; area++) {
		char *low = mmap(LOW[area], PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

		CHECK(low == LOW[area], "mmap at %p: %p, %s", LOW[area], low, strerror(errno));
		for (int page = 0; page < PAGES; page += 2)
			memset(low + page * PAGE, page + area + 1, PAGE);
	}

	wl_ready();
	if (wl_lose)
		LOW[1][10 * PAGE] = 0;
	for (int area = 0; area < 2; area++) {
		for (int at = 0; at < PAGES * PAGE; at += 64) {
			int page = at / PAGE;

			CHECK(LOW[area][at] == (page % 2 ? 0 : page + area + 1), "page %d of %d has %d", page, area, LOW[area][at]);
		}
	}
	wl_ok();
}
