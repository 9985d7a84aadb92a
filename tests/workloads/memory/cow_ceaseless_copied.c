// checkpoint-flags: --precopy=always
// peer: no, nothing of the kind is known there
// restless: its processes come and go all the time
/* The same, copied while it runs. */
#include "cow_ceaseless.c"
