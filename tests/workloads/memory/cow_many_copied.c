// checkpoint-flags: --precopy=always
// peer: no, nothing of the kind is known there
/* The same, copied while it runs. */
#include "cow_many.c"
