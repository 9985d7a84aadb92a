//! Two snippets that nearly every program already contains, and through which
//! a target can be entered and left without a byte of its code being changed.

use memchr::memmem::find;

/// Addresses of the two snippets in a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gadgets {
    /// `syscall; ret`.
    pub syscall: u64,
    /// `mov $15, %eax; syscall`: the return from a signal handler that every
    /// C library carries.
    pub sigreturn: u64,
}

const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
const SIGRETURN_LONG: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
const SIGRETURN_SHORT: &[u8] = &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// Offsets of the two snippets in `text`, each if it is there.
#[must_use]
pub fn find_gadgets(text: &[u8]) -> (Option<usize>, Option<usize>) {
    let call = find(text, SYSCALL_RET);
    let ret = find(text, SIGRETURN_LONG).or_else(|| find(text, SIGRETURN_SHORT));
    (call, ret)
}

/// Both snippets in sixteen bytes, for the rare program that has neither:
/// they go into the zero padding behind the vdso's code.
#[must_use]
pub fn spare_gadgets() -> [u8; 16] {
    let mut out = [0xcc; 16];
    out[..3].copy_from_slice(SYSCALL_RET);
    out[4..11].copy_from_slice(SIGRETURN_SHORT);
    out
}
