// checkpoint-flags: --precopy=always
// peer: no, it takes what changes meanwhile for another file
// differs: process *, processes, mappings and memory come and go all the time
// differs: thread *, processes, mappings and memory come and go all the time
// differs: mapping *, processes, mappings and memory come and go all the time
// differs: descriptor *, processes, mappings and memory come and go all the time
/* The same, copied while it runs. */
#include "shared_ceaseless.c"
