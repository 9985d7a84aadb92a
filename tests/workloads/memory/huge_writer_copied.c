// checkpoint-flags: --precopy=always
// peer: no, nothing of the kind is known there
// differs: mapping content.*, its threads never rest
/* The same, copied while it runs. */
#include "huge_writer.c"
