//! What a thread with nobody behind it still does in the trampoline before it
//! goes home: operations in the form of a batch's (`scratch::op`).
//!
//! A process's hand unmaps the scratch mapping, so it must be the last to
//! leave. Every other thread counts itself out on a futex word, from where it
//! has a dozen instructions and `rt_sigreturn` to go; the hand waits for the
//! count and then for a time that is generous for these. That time is the one
//! thing here that is not certain but only sure: a thread that gets no
//! processor for all of it would lose the ground under its feet.

use crate::scratch::{self, op};

/// Words at [`scratch::LEFT`]: the count, a word unused, and two times.
pub(crate) type Words = [u64; 6];

/// Nanoseconds for the last steps of one thread.
pub(crate) const GRACE_OF_ONE: u64 = 200_000_000;
/// And for each further one, which may stand in its way.
pub(crate) const GRACE_OF_EACH: u64 = 2_000_000;
/// Seconds to wait for one that never says that it leaves: it may have been
/// home already when we died.
const PATIENCE: u64 = 5;

const FUTEX_PRIVATE: u64 = 128;
const FUTEX_WAIT: u64 = FUTEX_PRIVATE;
const FUTEX_WAKE_OP: u64 = 5 | FUTEX_PRIVATE;
/// Add one; wake a second time if it was not zero, which wakes nobody then.
const ADD_ONE: u64 = 1 << 28 | 1 << 24 | 1 << 12;
const NANOS: u64 = 1_000_000_000;

/// The words while nobody has left.
pub(crate) fn times(grace: u64) -> Words {
    [0, 0, PATIENCE, 0, grace / NANOS, grace % NANOS]
}

/// An operation whose failure does not matter, skipped while the word at
/// `unless` (if any) is negative; bit n of `loaded` says that argument n is
/// the address of its value.
pub(crate) fn operation(nr: i64, args: [u64; 6], loaded: u64, unless: u64) -> [u8; op::SIZE] {
    let mut words = [0u64; op::SIZE / 8];
    words[op::NR / 8] = nr as u64;
    words[op::ARGS / 8..op::ARGS / 8 + 6].copy_from_slice(&args);
    words[op::REFS / 8] = op::MAY_FAIL | loaded;
    words[op::COND / 8] = unless;
    let mut bytes = [0; op::SIZE];
    for (room, word) in bytes.chunks_exact_mut(8).zip(words) {
        room.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Waits while exactly `count` threads have left.
pub(crate) fn wait_for_leaver(base: u64, count: u64, unless: u64) -> [u8; op::SIZE] {
    let args = [base + scratch::LEFT, FUTEX_WAIT, count, base + scratch::PATIENCE, 0, 0];
    operation(libc::SYS_futex, args, 0, unless)
}

/// Gives who has said that it leaves the time for its last steps.
pub(crate) fn grace(base: u64, unless: u64) -> [u8; op::SIZE] {
    operation(libc::SYS_nanosleep, [base + scratch::GRACE, 0, 0, 0, 0, 0], 0, unless)
}

/// How many operations [`for_others`] has.
pub(crate) const FOR_OTHERS: u64 = scratch::THREADS as u64 + 1;

/// A hand waits for each of the other threads that are in the mapping.
pub(crate) fn for_others(base: u64) -> Vec<u8> {
    let busy = |n: u64| base + scratch::BUSY + 8 * n;
    let mut all: Vec<u8> = (0..scratch::THREADS as u64).flat_map(|n| wait_for_leaver(base, n, busy(n))).collect();
    all.extend(grace(base, busy(0)));
    all
}

/// Says that this thread leaves.
pub(crate) fn say_left(base: u64) -> [u8; op::SIZE] {
    let left = base + scratch::LEFT;
    operation(libc::SYS_futex, [left, FUTEX_WAKE_OP, 1, 1, left, ADD_ONE], 0, 0)
}

/// The calls that a deserted hand or thread makes on its way home.
#[must_use]
pub fn farewell_calls() -> [i64; 8] {
    [
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_futex,
        libc::SYS_nanosleep,
        libc::SYS_close,
        libc::SYS_munmap,
        libc::SYS_rt_sigreturn,
    ]
}
