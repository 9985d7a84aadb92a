//! fcntl(2) requests about who gets a file's signals.

use super::check;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Whom `F_SETOWN_EX` names (the kernel's `F_OWNER_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerKind {
    /// One thread.
    Thread,
    /// A process.
    Process,
    /// A process group.
    Group,
}

/// Who gets the signals of a file. `pid` 0 is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub kind: OwnerKind,
    pub pid: i32,
}

#[repr(C)]
struct RawOwner {
    kind: i32,
    pid: i32,
}

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// `F_GETOWN_EX`. EBADF for an O_PATH descriptor.
pub fn getown_ex(file: impl AsFd) -> Result<Owner, Errno> {
    let mut raw = RawOwner { kind: 0, pid: 0 };
    // SAFETY: F_GETOWN_EX writes one f_owner_ex, whose layout RawOwner has.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETOWN_EX, &raw mut raw) })?;
    let kind = match raw.kind {
        0 => OwnerKind::Thread,
        1 => OwnerKind::Process,
        _ => OwnerKind::Group,
    };
    Ok(Owner { kind, pid: raw.pid })
}

/// `F_SETOWN_EX`. The kernel remembers the caller's uids with it and later checks the right to signal by them.
pub fn setown_ex(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    let kind = match owner.kind {
        OwnerKind::Thread => 0,
        OwnerKind::Process => 1,
        OwnerKind::Group => 2,
    };
    let raw = RawOwner { kind, pid: owner.pid };
    // SAFETY: F_SETOWN_EX reads one f_owner_ex, whose layout RawOwner has.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_SETOWN_EX, &raw const raw) }).map(drop)
}

/// `F_GETOWNER_UIDS`: real and effective uid of who set the owner.
pub fn getowner_uids(file: impl AsFd) -> Result<(u32, u32), Errno> {
    let mut uids = [0u32; 2];
    // SAFETY: F_GETOWNER_UIDS writes two uid_t.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETOWNER_UIDS, uids.as_mut_ptr()) })?;
    Ok((uids[0], uids[1]))
}

/// `F_GETSIG`: the signal sent instead of SIGIO; 0 for SIGIO without siginfo.
pub fn getsig(file: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: F_GETSIG takes no argument.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETSIG) })
}

/// `F_SETSIG`.
pub fn setsig(file: impl AsFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: F_SETSIG takes an integer.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_as_it_was_set() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(getown_ex(&reader).unwrap().pid, 0);
        let owner = Owner { kind: OwnerKind::Process, pid: rustix::process::getpid().as_raw_nonzero().get() };
        setown_ex(&reader, owner).unwrap();
        setsig(&reader, libc::SIGUSR1).unwrap();
        assert_eq!(getown_ex(&reader).unwrap(), owner);
        assert_eq!(getsig(&reader).unwrap(), libc::SIGUSR1);
        assert_eq!(getowner_uids(&reader).unwrap().0, rustix::process::getuid().as_raw());
    }
}
