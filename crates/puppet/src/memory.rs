//! A target's memory, read and written from outside.

use cryonaut_kernel::Errno;

/// Reads exactly `buf.len()` bytes at `at` in process `pid`
/// (process_vm_readv(2)). `EFAULT` if a part of it is not there.
pub fn read(pid: i32, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: buf.len() };
    // SAFETY: `local` is all of `buf`, borrowed mutably; the remote range is
    // the kernel's to check against the other process.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    whole(got, buf.len())
}

/// Reads as many of the ranges (address, length) as fit `buf`, one behind the
/// other; returns the number of bytes.
pub fn read_ranges(pid: i32, ranges: &[(u64, usize)], buf: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote: Vec<libc::iovec> =
        ranges.iter().map(|&(at, len)| libc::iovec { iov_base: at as *mut _, iov_len: len }).collect();
    // SAFETY: `local` is all of `buf`, borrowed mutably; the kernel writes no
    // more than its length and checks the remote ranges.
    let got =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
    if got < 0 { Err(last()) } else { Ok(got as usize) }
}

/// Writes exactly `bytes` at `at` in process `pid` (process_vm_writev(2)).
pub fn write(pid: i32, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: bytes.len() };
    // SAFETY: the kernel only reads from `local`, which is all of `bytes`.
    let got = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    whole(got, bytes.len())
}

fn whole(got: isize, wanted: usize) -> Result<(), Errno> {
    match got {
        n if n < 0 => Err(last()),
        n if n as usize == wanted => Ok(()),
        _ => Err(Errno::FAULT),
    }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
