//! Another process' memory: process_vm_readv(2) and process_vm_writev(2).
//!
//! They honour the protection of the target's pages. To read or write whatever the protection, use pread and
//! pwrite on `/proc/PID/mem` ([`crate::proc::Task::open_file`]).
//!
//! These functions are safe because the memory they change is another process': like a write to
//! `/proc/self/mem`, a call with one's own pid is outside of what Rust can vouch for.

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::Pid;
use std::os::fd::AsFd;

use super::check;

/// A span of the target's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Remote {
    pub address: u64,
    pub len: u64,
}

// The spans are handed to the kernel as iovecs, whose pointers it does not take as ours.
const _: () = assert!(size_of::<Remote>() == size_of::<libc::iovec>());
const _: () = assert!(std::mem::offset_of!(Remote, address) == std::mem::offset_of!(libc::iovec, iov_base));
const _: () = assert!(std::mem::offset_of!(Remote, len) == std::mem::offset_of!(libc::iovec, iov_len));

/// Most spans of one call (`UIO_MAXIOV`).
pub const MAX_SPANS: usize = 1024;

/// Reads the spans one after the other into `into`. Returns the bytes read, which is less than asked for when a
/// page cannot be read; EFAULT when the first cannot. At most [`MAX_SPANS`] spans (EINVAL).
pub fn read_spans(pid: Pid, from: &[Remote], into: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: the kernel writes at most iov_len bytes to iov_base, which is all of `into`; the remote spans are
    // addresses of the target and are read as an array of `from.len()` iovecs, whose layout Remote has.
    let answer = unsafe {
        let pid = pid.as_raw_nonzero().get();
        libc::syscall(libc::SYS_process_vm_readv, pid, &raw const local, 1, from.as_ptr(), from.len(), 0usize)
    };
    check(answer).map(|count| count as usize)
}

/// Writes `from` into the spans one after the other; returns the bytes written, as [`read_spans`].
pub fn write_spans(pid: Pid, from: &[u8], into: &[Remote]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: the kernel only reads iov_len bytes from iov_base, which is all of `from`; the remote spans are
    // addresses of the target and are read as an array of `into.len()` iovecs, whose layout Remote has.
    let answer = unsafe {
        let pid = pid.as_raw_nonzero().get();
        libc::syscall(libc::SYS_process_vm_writev, pid, &raw const local, 1, into.as_ptr(), into.len(), 0usize)
    };
    check(answer).map(|count| count as usize)
}

/// Writes what a file has from `offset` on, a multiple of the page size, into the spans one after the other, out of the
/// page cache; returns the bytes written, as [`read_spans`], also when the file ends before. The file is mapped
/// meanwhile.
pub fn write_spans_of_file(pid: Pid, file: impl AsFd, offset: u64, into: &[Remote]) -> Result<usize, Errno> {
    let len = into.iter().map(|span| span.len as usize).sum();
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    // SAFETY: a new mapping, of which nobody but this function knows. It is read by the kernel alone, to which the end
    // of a file that is cut short is an error, not a signal.
    let at = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, file, offset) }?;
    let local = libc::iovec { iov_base: at, iov_len: len };
    // SAFETY: as in `write_spans`; the local bytes are those of the mapping.
    let answer = unsafe {
        let pid = pid.as_raw_nonzero().get();
        libc::syscall(libc::SYS_process_vm_writev, pid, &raw const local, 1, into.as_ptr(), into.len(), 0usize)
    };
    let written = check(answer).map(|count| count as usize);
    // SAFETY: the mapping made above, which nothing refers to any more.
    unsafe { munmap(at, len) }?;
    written
}

/// Fills `into` from `address`; EFAULT when not all of it can be read.
pub fn read(pid: Pid, address: u64, into: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    // The kernel caps a call at 2 GiB.
    while done < into.len() {
        let rest = Remote { address: address + done as u64, len: (into.len() - done) as u64 };
        match read_spans(pid, &[rest], &mut into[done..])? {
            0 => return Err(Errno::FAULT),
            count => done += count,
        }
    }
    Ok(())
}

/// Writes all of `from` to `address`; EFAULT when not all of it can be written, some of it then may be.
pub fn write(pid: Pid, address: u64, from: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < from.len() {
        let rest = Remote { address: address + done as u64, len: (from.len() - done) as u64 };
        match write_spans(pid, &from[done..], &[rest])? {
            0 => return Err(Errno::FAULT),
            count => done += count,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Spawn, spawn_idle};

    #[test]
    fn reads_and_writes_a_childs_copy() {
        let data = Box::new([7u8; 64]);
        let address = data.as_ptr() as u64;
        let child = spawn_idle(&Spawn::default()).unwrap();
        write(child.pid, address + 8, &[1, 2, 3, 4]).unwrap();
        let mut back = [0u8; 16];
        read(child.pid, address, &mut back).unwrap();
        assert_eq!(back, [7, 7, 7, 7, 7, 7, 7, 7, 1, 2, 3, 4, 7, 7, 7, 7]);
        let spans = [Remote { address: address + 8, len: 2 }, Remote { address: address + 11, len: 2 }];
        let mut four = [0u8; 4];
        assert_eq!(read_spans(child.pid, &spans, &mut four), Ok(4));
        assert_eq!(four, [1, 2, 4, 7]);
        assert_eq!(data[8], 7);
        let file = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, &[5; 6000]).unwrap();
        let spans = [Remote { address, len: 3 }, Remote { address: address + 4, len: 2 }];
        assert_eq!(write_spans_of_file(child.pid, &file, 4096, &spans), Ok(5));
        read(child.pid, address, &mut four).unwrap();
        assert_eq!(four, [5, 5, 5, 7]);
        // The file has no such page.
        assert_eq!(write_spans_of_file(child.pid, &file, 8192, &spans), Err(Errno::FAULT));
        assert_eq!(read(child.pid, 8, &mut four), Err(Errno::FAULT));
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        crate::sys::wait::wait(crate::sys::wait::Who::One(child.pid)).unwrap();
        assert_eq!(read(child.pid, address, &mut four), Err(Errno::SRCH));
    }
}
