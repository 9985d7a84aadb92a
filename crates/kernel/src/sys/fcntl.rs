//! fcntl(2) requests about who gets a file's signals, leases, and byte-range locks of both kinds.
//!
//! Flags, seals, pipe sizes and flock are in rustix. [`take_inherited`] makes a file of a number that our caller left us.

use super::check;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A duplicate of a descriptor that this process was started with, such as the one that the argument of `criu swrk`
/// names. The number itself stays open, but only until a program is executed.
///
/// # Errors
/// EBADF if nothing is open under this number.
pub fn take_inherited(number: i32) -> Result<OwnedFd, Errno> {
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let file = rustix::process::pidfd_getfd(&me, number, PidfdGetfdFlags::empty())?;
    // SAFETY: F_SETFD touches no memory, and closes nothing that this program has: whoever owns the number goes on
    // owning an open file.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(file)
}

/// Closes what a number leads to that this process was started with, for whoever waits for its end: the number itself
/// stays taken.
///
/// # Errors
/// Those of opening /dev/null, or EBADF.
pub fn let_go_of_inherited(number: i32) -> Result<(), Errno> {
    let nothing = std::fs::File::open("/dev/null").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    // SAFETY: dup3 touches no memory; whoever owns the number goes on owning an open file.
    check(unsafe { libc::dup3(nothing.as_raw_fd(), number, libc::O_CLOEXEC) })?;
    Ok(())
}

/// Makes room for as many open files as a program like this one has. The table grows as they come, and as soon as there
/// are two threads, the kernel waits for a grace period of RCU whenever it does (expand_fdtable, fs/file.c): ten
/// milliseconds each time.
pub fn make_room() {
    const MANY: [i32; 2] = [4096, 1024];
    for many in MANY {
        // SAFETY: F_DUPFD_CLOEXEC touches no memory; the number it gives is nobody else's, and closed at once.
        let high = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, many - 1) };
        if high >= 0 {
            // SAFETY: as above.
            unsafe { libc::close(high) };
            return;
        }
    }
}

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
const F_OFD_GETLK: i32 = 36;
const F_OFD_SETLK: i32 = 37;

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

/// The lease through this description: `F_RDLCK`, `F_WRLCK` or `F_UNLCK`. While one is being broken, what it must
/// become.
pub fn get_lease(fd: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: F_GETLEASE takes no argument.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETLEASE) })
}

/// Takes, changes or (`F_UNLCK`) gives back a lease. Also makes the caller the file's owner.
pub fn set_lease(fd: impl AsFd, kind: i32) -> Result<(), Errno> {
    // SAFETY: F_SETLEASE takes an integer.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// Who owns a byte-range lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOwner {
    /// The calling process; gone with its first close of the file.
    Process,
    /// The open file description.
    Description,
}

/// A byte-range lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLock {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: i32,
    /// First byte.
    pub start: i64,
    /// Bytes; 0 to the end of the file, however it grows.
    pub len: i64,
}

fn raw_lock(lock: &RangeLock) -> libc::flock {
    libc::flock {
        l_type: lock.kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start,
        l_len: lock.len,
        l_pid: 0,
    }
}

/// Takes or gives back a lock without waiting; EAGAIN or EACCES when another has it.
pub fn set_lock(fd: impl AsFd, owner: LockOwner, lock: &RangeLock) -> Result<(), Errno> {
    let command = match owner {
        LockOwner::Process => libc::F_SETLK,
        LockOwner::Description => F_OFD_SETLK,
    };
    let raw = raw_lock(lock);
    // SAFETY: both commands read one struct flock from `raw`.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, &raw const raw) }).map(drop)
}

/// A lock that would keep `lock` from being taken, and its owner (`None` for a description's or an unseen process').
pub fn find_conflict(
    fd: impl AsFd,
    owner: LockOwner,
    lock: &RangeLock,
) -> Result<Option<(RangeLock, Option<Pid>)>, Errno> {
    let command = match owner {
        LockOwner::Process => libc::F_GETLK,
        LockOwner::Description => F_OFD_GETLK,
    };
    let mut raw = raw_lock(lock);
    // SAFETY: both commands read and write one struct flock at `raw`.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, &raw mut raw) })?;
    let kind = i32::from(raw.l_type);
    if kind == libc::F_UNLCK {
        return Ok(None);
    }
    let holder = (raw.l_pid > 0).then(|| Pid::from_raw(raw.l_pid)).flatten();
    Ok(Some((RangeLock { kind, start: raw.l_start, len: raw.l_len }, holder)))
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
        let (thread, group) = (rustix::thread::gettid(), rustix::process::getpgrp());
        for (kind, pid) in [(OwnerKind::Thread, thread), (OwnerKind::Group, group)] {
            let owner = Owner { kind, pid: pid.as_raw_nonzero().get() };
            setown_ex(&reader, owner).unwrap();
            assert_eq!(getown_ex(&reader).unwrap(), owner);
        }
    }

    #[test]
    fn leases() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(get_lease(&file), Ok(libc::F_UNLCK));
        set_lease(&file, libc::F_WRLCK).unwrap();
        assert_eq!(get_lease(&file), Ok(libc::F_WRLCK));
        set_lease(&file, libc::F_UNLCK).unwrap();
    }

    #[test]
    fn range_locks_of_descriptions_conflict() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = file.reopen().unwrap();
        let lock = RangeLock { kind: libc::F_WRLCK, start: 5, len: 10 };
        set_lock(&file, LockOwner::Description, &lock).unwrap();
        let whole = RangeLock { kind: libc::F_RDLCK, start: 0, len: 0 };
        assert_eq!(find_conflict(&other, LockOwner::Description, &whole), Ok(Some((lock, None))));
        assert_eq!(find_conflict(&other, LockOwner::Process, &whole), Ok(Some((lock, None))));
        assert_eq!(set_lock(&other, LockOwner::Description, &whole), Err(Errno::AGAIN));
        let before = RangeLock { len: 5, ..whole };
        assert_eq!(set_lock(&other, LockOwner::Process, &before), Ok(()));
        assert_eq!(find_conflict(&file, LockOwner::Description, &before), Ok(None));
    }
}
