// flags: --file-locks
// peer: no, CRIU 4.2 loses the locks of a child on a descriptor that it shares with its parent
/* POSIX record locks: their ranges, kinds and owners, of parent and child, through one shared open. */
#include "ranges.h"

int main(int argc, char **argv)
{
	ranges_main(argc, argv, true);
}
