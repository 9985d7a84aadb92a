// checkpoint-flags: --precopy=always
// peer: no, nothing of the kind is known there
// differs: mapping *, it is moved all the time
// differs: thread *, its threads never rest
// differs: process maps, they change all the time
/* The same, copied while it runs. */
#include "moved_back.c"
