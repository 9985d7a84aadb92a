/* Memory that is being written all the time: two copies kept in step by two threads, whatever the moment of the freeze. */
#include <pthread.h>

#include "workload.h"

#define WORDS (1 << 20)

struct half {
	volatile uint64_t first[WORDS], second[WORDS];
	volatile uint64_t turn;
};

static struct half *halves;
static volatile bool stop;

/* Writes the same new value to both copies, at places all over the memory. */
static void *write_on(void *argument)
{
	struct half *half = argument;

	while (!stop) {
		uint64_t turn = ++half->turn, place = turn * 0x9E3779B97F4A7C15ull % WORDS;

		half->first[place] = turn;
		half->second[place] = turn;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	uint64_t before;

	wl_init(argc, argv);
	halves = MUST(mmap(NULL, 2 * sizeof(struct half), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < 2; i++)
		MUST0(pthread_create(&threads[i], NULL, write_on, &halves[i]));
	wl_sleep_ms(30);

	wl_ready();
	before = halves[0].turn;
	WAIT_FOR(halves[0].turn > before, "the writer does not go on");
	stop = true;
	for (int i = 0; i < 2; i++)
		MUST0(pthread_join(threads[i], NULL));
	if (wl_lose)
		halves[1].first[12345] ^= 1;
	for (int i = 0; i < 2; i++) {
		uint64_t turn = halves[i].turn, place = turn * 0x9E3779B97F4A7C15ull % WORDS;

		CHECK(halves[i].first[place] == turn, "the last write of thread %d is lost", i);
		for (size_t at = 0; at < WORDS; at++)
			CHECK(halves[i].first[at] == halves[i].second[at], "thread %d: the copies differ at %zu: %lu and %lu", i, at, halves[i].first[at],
			      halves[i].second[at]);
	}
	wl_ok();
}
