//! File locks: `/proc/locks`, and the `lock:` lines of fdinfo, which have the same form (fs/locks.c,
//! `lock_get_status`).

use super::text::{self, Malformed, OrMalformed};

/// Which call made the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl F_SETLK: owned by the process.
    Posix,
    /// fcntl F_OFD_SETLK: owned by the open file description.
    Ofd,
    /// flock(2): owned by the open file description.
    Flock,
    /// fcntl F_SETLEASE.
    Lease,
    /// An NFS server's.
    Delegation,
    Layout,
    /// Shown by a server of a network file system for its own.
    Access,
}

/// What the owner may do under the lock; for a lease that is being broken, what will be left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAccess {
    Read,
    Write,
    Unlock,
}

/// How the lock binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockState {
    Advisory,
    /// Before Linux 5.15.
    Mandatory,
    /// A lease that holds.
    Active,
    /// A lease that its owner has been asked to give back.
    Breaking,
    /// An open that waits for a lease to be given back.
    Breaker,
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLock {
    /// Number in the list. Waiters have the number of the lock that they wait for.
    pub id: u64,
    /// It is not held but waited for.
    pub waiting: bool,
    pub kind: LockKind,
    pub state: LockState,
    pub access: LockAccess,
    /// The process that took it; -1 for OFD locks, 0 for one outside of the reader's pid namespace.
    pub pid: i32,
    /// Major and minor number of the superblock's device.
    pub dev: (u32, u32),
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` to the end of the file, however it grows.
    pub end: Option<u64>,
}

/// Parses `/proc/locks`.
pub fn parse(text: &[u8]) -> Result<Vec<FileLock>, Malformed> {
    text::lines(text).map(parse_line).collect()
}

/// Parses one lock: `1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF`.
pub(crate) fn parse_line(line: &[u8]) -> Result<FileLock, Malformed> {
    try_line(line).or_malformed("file lock", line)
}

fn try_line(line: &[u8]) -> Option<FileLock> {
    let mut words = text::words(line);
    let id = text::dec(words.next()?.strip_suffix(b":")?)?;
    let mut kind = words.next()?;
    // Waiters on waiters are indented further, the arrow stays one word.
    let waiting = kind == b"->";
    if waiting {
        kind = words.next()?;
    }
    let kind = match kind {
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        b"FLOCK" => LockKind::Flock,
        b"LEASE" => LockKind::Lease,
        b"DELEG" => LockKind::Delegation,
        b"LAYOUT" => LockKind::Layout,
        b"ACCESS" => LockKind::Access,
        _ => return None,
    };
    let state = match words.next()? {
        b"ADVISORY" => LockState::Advisory,
        b"MANDATORY" => LockState::Mandatory,
        b"ACTIVE" => LockState::Active,
        b"BREAKING" => LockState::Breaking,
        b"BREAKER" => LockState::Breaker,
        _ => return None,
    };
    let access = match words.next()? {
        b"READ" => LockAccess::Read,
        b"WRITE" => LockAccess::Write,
        b"UNLCK" => LockAccess::Unlock,
        _ => return None,
    };
    let pid = text::signed(words.next()?)?;
    let (major, rest) = text::cut(words.next()?, b':')?;
    let (minor, inode) = text::cut(rest, b':')?;
    let start = text::dec(words.next()?)?;
    let end = match words.next()? {
        b"EOF" => None,
        end => Some(text::dec(end)?),
    };
    let (dev, inode) = ((text::hex(major)?, text::hex(minor)?), text::dec(inode)?);
    Some(FileLock { id, waiting, kind, state, access, pid, dev, inode, start, end })
}

/// All locks of the machine that the reader's pid namespace may see.
pub fn all() -> super::Result<Vec<FileLock>> {
    let path = || "/proc/locks".to_owned();
    let mut file = std::fs::File::from(super::open("locks", rustix::fs::OFlags::RDONLY)?);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut text).map_err(|error| super::Error::Io {
        action: "read",
        path: path(),
        errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
    })?;
    parse(&text).map_err(|problem| super::Error::Malformed { path: path(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind() {
        let text = b"1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 5 14\n\
            1: -> POSIX  ADVISORY  READ 3569 fd:00:2531452 0 EOF\n\
            2: OFDLCK ADVISORY  READ -1 00:1f:7 0 0\n\
            3: LEASE  BREAKING  UNLCK 9 103:1a2:1 0 EOF\n";
        let locks = parse(text).unwrap();
        assert_eq!((locks[0].kind, locks[0].start, locks[0].end), (LockKind::Posix, 5, Some(14)));
        assert_eq!((locks[0].dev, locks[0].inode, locks[0].pid), ((0xfd, 0), 2531452, 3568));
        assert!(locks[1].waiting && locks[1].id == 1 && locks[1].end.is_none());
        assert_eq!((locks[2].kind, locks[2].pid, locks[2].access), (LockKind::Ofd, -1, LockAccess::Read));
        assert_eq!((locks[3].state, locks[3].access), (LockState::Breaking, LockAccess::Unlock));
        assert_eq!(locks[3].dev, (0x103, 0x1a2));
        assert!(parse(b"1: POSIX  ADVISORY  WRITE 3568 fd:00 0 EOF\n").is_err());
    }

    #[test]
    fn live() {
        all().unwrap();
    }
}
