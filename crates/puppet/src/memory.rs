//! A target's memory, read and written from outside, by plain pid.

use crate::trace::id;
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::mem;
pub use cryonaut_kernel::sys::mem::{MAX_SPANS, Remote};

/// Reads exactly `buf.len()` bytes at `at` in process `pid`; `EFAULT` if a
/// part of it is not there.
pub fn read(pid: i32, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
    mem::read(id(pid)?, at, buf)
}

/// Reads the spans one behind the other; returns the number of bytes.
pub fn read_spans(pid: i32, spans: &[Remote], buf: &mut [u8]) -> Result<usize, Errno> {
    mem::read_spans(id(pid)?, spans, buf)
}

/// Writes exactly `bytes` at `at` in process `pid`.
pub fn write(pid: i32, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    mem::write(id(pid)?, at, bytes)
}
