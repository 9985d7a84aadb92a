// flags: --file-locks
/* POSIX record locks: their ranges, kinds and owners, of parent and child. */
#include "ranges.h"

int main(int argc, char **argv)
{
	ranges_main(argc, argv, false);
}
