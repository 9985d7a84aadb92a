// checkpoint-flags: --precopy=always
// peer: no, nothing of the kind is known there
// differs: mapping *, it is made, moved and removed all the time
// differs: thread *, its threads never rest
// differs: process maps, they change all the time
/* The same, copied while it runs. */
#include "ceaseless.c"
