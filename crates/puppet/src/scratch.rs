//! The scratch mapping: what a hand needs inside its target, and where.
//!
//! One private anonymous mapping per process, at an address that nothing else
//! uses. It is there from [`crate::Hand::enter`] until the hand is released
//! (or, with nobody behind the hand, until the farewell), and holds:
//!
//! | offset  | what                                                        |
//! |---------|-------------------------------------------------------------|
//! | CODE    | the trampoline                                              |
//! | SLOT    | the slot of the process's own hand                          |
//! | FAREWELL| operations to run when nobody stands behind the hand        |
//! | NUMBERS | descriptors that are open for our sake                      |
//! | LEFT... | how many threads have left, and how long to wait for them    |
//! | OPS     | the operations of the current batch                         |
//! | DATA    | what those operations read and write                        |
//! | STACK   | a stack, grows down from STACK_TOP                          |
//! | THREAD  | the same again, small: rows for a few further threads       |
//! | VERDICT | a page of its own, shared by all hands of a tree if need be |
//!
//! Threads of a built process that wait for the verdict have rows in a mapping
//! of their own, see `park`.

/// Offset of the trampoline.
pub const CODE: u64 = 0;
/// Offset of the main slot.
pub const SLOT: u64 = 0x1000;
/// Offset of the farewell operations.
pub const FAREWELL: u64 = 0x1100;
/// How many farewell operations fit.
pub const FAREWELL_MAX: usize = 40;
/// Offset of the batch's operations.
pub const OPS: u64 = 0x2000;
/// How many operations a batch may hold.
pub const OPS_MAX: usize = 256;
/// Offset of the batch's data.
pub const DATA: u64 = 0x8000;
/// Bytes of data that a batch may hold.
pub const DATA_LEN: usize = 0x14000;
/// Top of the main hand's stack.
pub const STACK_TOP: u64 = 0x1e000;
/// How many further threads run a batch at a time.
pub const THREADS: usize = 16;
/// Distance of their rows.
pub const THREAD_ROW: u64 = 0x7000;
/// The slot of the first of them.
pub const THREAD_SLOT: u64 = 0x1e000;
/// Its operations.
pub const THREAD_OPS: u64 = 0x1e100;
/// How many operations a thread's batch may hold.
pub const THREAD_OPS_MAX: usize = 60;
/// Its data.
pub const THREAD_DATA: u64 = 0x1f400;
/// Bytes of data that a thread's batch may hold.
pub const THREAD_DATA_LEN: usize = 0xc00;
/// Its frame.
pub const THREAD_FRAME: u64 = 0x20000;
/// Top of its stack.
pub const THREAD_STACK_TOP: u64 = 0x25000;
/// The page with the verdict word.
pub const VERDICT: u64 = THREAD_SLOT + THREADS as u64 * THREAD_ROW;
/// Length of the mapping, the verdict's page included.
pub const LEN: u64 = VERDICT + 0x1000;

/// `struct cmsghdr` of one descriptor that the hand receives, which becomes the
/// first of the numbers.
pub const CONTROL: u64 = 0x1d80;
/// Numbers of descriptors, 32 bits each; negative if there is none.
pub const NUMBERS: u64 = CONTROL + 16;
/// How many fit.
pub const NUMBERS_MAX: usize = 18;
/// A futex word: how many of the process's other threads have left for home.
pub const LEFT: u64 = 0x1e00;
/// A word for each of [`THREADS`]: as many as there are other threads in the
/// mapping, from the first on, are zero; the rest is negative.
pub const BUSY: u64 = 0x1f00;
/// `struct timespec`: how long to wait for another thread to leave.
pub const PATIENCE: u64 = 0x1e10;
/// `struct timespec`: how long its last steps may take after it has said so.
pub const GRACE: u64 = 0x1e20;
/// The farewell operation of another thread: it says that it leaves.
pub const THREAD_FAREWELL: u64 = 0x1e40;

/// The verdict word, for a hand with nobody behind it: go home. Zero says the
/// same.
pub const VERDICT_GO_ON: u32 = 1;
/// The verdict word: end the process.
pub const VERDICT_DIE: u32 = 2;

/// Field offsets of a slot.
pub mod slot {
    /// Number of the newest batch; the brain writes it.
    pub const REQUEST: usize = 0;
    /// Number of the newest batch that was run; the hand writes it.
    pub const DONE: usize = 8;
    /// Address of the operations.
    pub const OPS: usize = 16;
    /// How many they are.
    pub const COUNT: usize = 24;
    /// How many of them were not reached because one failed.
    pub const LEFT: usize = 32;
    /// Address of the verdict word, or 0.
    pub const VERDICT: usize = 40;
    /// Address of the farewell operations.
    pub const FAREWELL_OPS: usize = 48;
    /// How many they are.
    pub const FAREWELL_COUNT: usize = 56;
    /// Stack pointer with which to leave.
    pub const LEAVE_SP: usize = 64;
    /// First argument of the leaving call.
    pub const LEAVE_ARG0: usize = 72;
    /// Second argument of the leaving call.
    pub const LEAVE_ARG1: usize = 80;
    /// Number of the leaving call.
    pub const LEAVE_NR: usize = 88;
    /// Address of the code that makes the leaving call.
    pub const LEAVE_IP: usize = 96;
    /// Signal by which the hand announces that it is idle.
    pub const SIGNAL: usize = 104;
    /// Size of a slot.
    pub const SIZE: usize = 112;
}

/// Field offsets of an operation.
pub mod op {
    /// System call number.
    pub const NR: usize = 0;
    /// Six arguments.
    pub const ARGS: usize = 8;
    /// Bits 0 to 5: that argument is the address of its value. Then flags.
    pub const REFS: usize = 56;
    /// Zero, or the address of a word that, if negative, skips the operation.
    pub const COND: usize = 64;
    /// What the call returned.
    pub const RESULT: usize = 72;
    /// Size of an operation.
    pub const SIZE: usize = 80;
    /// Flag in REFS: an error does not end the batch.
    pub const MAY_FAIL: u64 = 0x100;
}

const _: () = assert!(FAREWELL as usize + FAREWELL_MAX * op::SIZE <= CONTROL as usize);
const _: () = assert!(NUMBERS as usize + NUMBERS_MAX * 4 <= LEFT as usize);
const _: () = assert!(THREAD_FAREWELL as usize + op::SIZE <= BUSY as usize);
const _: () = assert!(BUSY as usize + THREADS * 8 <= OPS as usize);
const _: () = assert!(THREAD_STACK_TOP <= THREAD_SLOT + THREAD_ROW);
const _: () = assert!(OPS as usize + OPS_MAX * op::SIZE <= DATA as usize);
const _: () = assert!(DATA as usize + DATA_LEN < STACK_TOP as usize - 0x1000);
const _: () = assert!(THREAD_OPS as usize + THREAD_OPS_MAX * op::SIZE <= THREAD_DATA as usize);
