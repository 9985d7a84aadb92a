//! This program's own heap.

/// Freed memory that is kept, in bytes, in each arena.
const KEPT: libc::c_int = 8 << 20;
/// Allocations from so many bytes on are mappings of their own.
const LARGE: libc::c_int = 4 << 20;
/// Bytes that the heap grows by, at least.
const STEP: libc::c_int = 256 << 10;

/// Lets the C library keep some MiB of what is freed. Otherwise it returns the top of the heap whenever a buffer is
/// freed (from 128 KiB on, mallopt(3)), and each page of the next buffer is faulted in and cleared again: at every
/// process of a tree.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [(libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TOP_PAD, STEP)] {
        // SAFETY: mallopt takes two integers, and may be called at any time by any thread.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Bytes that a thread's heap has room for from its beginning; less than [`LARGE`] and [`KEPT`].
const ROOM: usize = 3 << 20;

/// Gives a thread's own heap some room, none of which is used yet: the C library enlarges all heaps but the first by as
/// much as is asked for and no more, with a system call each time.
pub fn reserve() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(ROOM)));
}

/// Bytes that the work on a small process takes.
const AHEAD: usize = 512 << 10;

/// Has the kernel give this thread's heap some memory now, which it would otherwise fault in page by page while others
/// wait for what it does.
pub fn fault_in() {
    drop(std::hint::black_box(vec![1u8; AHEAD]));
}
