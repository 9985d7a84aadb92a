//! The hands: a stopped process that runs batches of system calls for the brain.
