/* Data going round through pipes of four processes without a pause: nothing is lost, doubled or changed on the way. */
#include "workload.h"

#define STATIONS 4

struct letter {
	uint64_t number, check;
};

int main(int argc, char **argv)
{
	int pipes[STATIONS][2];
	pid_t children[STATIONS];
	struct letter letter;
	uint64_t round = 0;

	wl_init(argc, argv);
	for (int i = 0; i < STATIONS; i++)
		MUST(pipe(pipes[i]));
	for (int i = 1; i < STATIONS; i++) {
		children[i] = wl_fork();
		if (children[i] != 0)
			continue;
		for (int j = 0; j < STATIONS; j++) {
			if (j != i - 1)
				MUST(close(pipes[j][0]));
			if (j != i)
				MUST(close(pipes[j][1]));
		}
		wl_child_ready();
		while (read(pipes[i - 1][0], &letter, sizeof(letter)) == sizeof(letter)) {
			CHECK(letter.check == letter.number * 31 + i - 1, "station %d got %lu with %lu", i, letter.number, letter.check);
			letter.check++;
			MUST(write(pipes[i][1], &letter, sizeof(letter)));
		}
		_exit(0);
	}
	for (int i = 0; i < STATIONS; i++) {
		if (i != STATIONS - 1)
			MUST(close(pipes[i][0]));
		if (i != 0)
			MUST(close(pipes[i][1]));
	}
	/* Thirty letters are under way at any time. */
	for (; round < 30; round++) {
		letter = (struct letter){ round, round * 31 };
		MUST(write(pipes[0][1], &letter, sizeof(letter)));
	}
	wl_say("ready\n");
	for (uint64_t expected = 0; expected < round; expected++) {
		CHECK(read(pipes[STATIONS - 1][0], &letter, sizeof(letter)) == sizeof(letter), "the round has ended");
		if (wl_lose && expected == round - 2)
			letter.number++;
		CHECK(letter.number == expected && letter.check == expected * 31 + STATIONS - 1, "letter %lu came as %lu", expected, letter.number);
		if (!wl_told_to_go()) {
			letter = (struct letter){ round, round * 31 };
			MUST(write(pipes[0][1], &letter, sizeof(letter)));
			round++;
		}
	}
	MUST(close(pipes[0][1]));
	for (int i = 1; i < STATIONS; i++)
		wl_join(children[i]);
	wl_ok();
}
