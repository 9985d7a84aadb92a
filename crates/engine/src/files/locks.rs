//! File locks and leases (`filelocks.img`): what the kernel shows of them with
//! each descriptor, and taking them again in the process that had them.
//!
//! POSIX locks belong to a process and go with its first close of the file,
//! and a lease remembers the number of the descriptor it was taken through: so
//! all are taken by the process itself, after its last descriptor is in place.

use super::regular_path::reopen;
use super::{Collect, OpenFile, Settle};
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::FileLockEntry;
use cryonaut_kernel::proc::locks::{FileLock, LockAccess, LockKind, LockState};
use cryonaut_kernel::sys::creds;
use cryonaut_kernel::sys::fcntl::{self, Owner, OwnerKind};
use cryonaut_puppet::{Arg, Batch, Call};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};

/// Values of `FileLockEntry.flag`, as CRIU 4.2 writes them. Those of POSIX locks and flocks are also the kernel's.
const FL_POSIX: u32 = 1;
const FL_FLOCK: u32 = 2;
const FL_OFD: u32 = 4;
const FL_LEASE: u32 = 8;

/// Added to the type of a lease that is being broken; the rest says what it is
/// to become.
const LEASE_BREAKING: u32 = 4;

/// Locks taken in one batch.
const TOGETHER: usize = 16;

/// Locks written down so far: kind, owner (a process and the file's numbers,
/// or a file of the image), first byte.
pub(super) type Noted = HashSet<(u32, i32, u64, u64, u64)>;

/// Writes down the locks that are held through a descriptor, each once. `id`
/// is that of its open file.
pub(super) fn collect(cx: &mut Collect<'_>, open: &OpenFile<'_>, id: u32) -> Result<()> {
    for lock in open.info.locks.iter().filter(|lock| !lock.waiting) {
        if !cx.options.file_locks {
            return Err(Error::unsupported(
                open.object(),
                format!("it holds {}", describe(lock)),
                "carry locks with --file-locks, if nobody outside of the tree uses them",
            ));
        }
        let flag = flag_of(open, lock)?;
        let key = match flag {
            FL_POSIX => (flag, open.pid, open.stat.st_dev, open.stat.st_ino, lock.start),
            _ => (flag, 0, u64::from(id), 0, lock.start),
        };
        if !cx.locks.insert(key) {
            continue;
        }
        if open.carrier.is_some() {
            let reason = format!("it holds {}, and no process of the tree has it", describe(lock));
            return Err(Error::unsupported(open.object(), reason, "let the program receive it before the checkpoint"));
        }
        let entry = FileLockEntry {
            flag,
            r#type: kind_of(lock.access) as u32 | if lock.state == LockState::Breaking { LEASE_BREAKING } else { 0 },
            pid: open.pid,
            fd: open.fd,
            start: lock.start as i64,
            len: lock.end.map_or(0, |end| (end - lock.start + 1) as i64),
        };
        cx.images.append(ImageKind::FileLocks, None, &entry, None)?;
    }
    Ok(())
}

fn describe(lock: &FileLock) -> &'static str {
    match lock.kind {
        LockKind::Posix => "a POSIX lock",
        LockKind::Ofd => "an open file description lock",
        LockKind::Flock => "a flock",
        LockKind::Lease => "a lease",
        LockKind::Delegation | LockKind::Layout | LockKind::Access => "a lock of a file server",
    }
}

fn flag_of(open: &OpenFile<'_>, lock: &FileLock) -> Result<u32> {
    let refused = |reason: &str, remedy| Err(Error::unsupported(open.object(), reason, remedy));
    match (lock.kind, lock.state) {
        (_, LockState::Mandatory) => refused("it holds a mandatory lock", "mount its file system without mand"),
        (LockKind::Posix, _) => Ok(FL_POSIX),
        (LockKind::Ofd, _) => Ok(FL_OFD),
        (LockKind::Flock, _) => Ok(FL_FLOCK),
        (LockKind::Lease, _) => Ok(FL_LEASE),
        _ => refused("it holds a lock of a file server", "stop the file server"),
    }
}

fn kind_of(access: LockAccess) -> i32 {
    match access {
        LockAccess::Read => libc::F_RDLCK,
        LockAccess::Write => libc::F_WRLCK,
        LockAccess::Unlock => libc::F_UNLCK,
    }
}

/// Takes all locks of the image again. To be called when every process has its
/// last descriptor.
pub fn build(cx: &mut Settle<'_>) -> Result<()> {
    let entries: Vec<FileLockEntry> = cx.images.read_all_optional(ImageKind::FileLocks, None)?;
    let mut by_process: BTreeMap<i32, Vec<FileLockEntry>> = BTreeMap::new();
    for entry in entries {
        by_process.entry(entry.pid).or_default().push(entry);
    }
    for (pid, entries) in by_process {
        if !cx.options.file_locks {
            return Err(Error::unsupported(object(&entries[0]), "the image has locks", "restore it with --file-locks"));
        }
        for entries in entries.chunks(TOGETHER) {
            take(cx, pid, entries)?;
        }
    }
    Ok(())
}

fn object(entry: &FileLockEntry) -> Object {
    let kind = match entry.flag {
        FL_POSIX => "POSIX lock",
        FL_FLOCK => "flock",
        FL_LEASE => "lease",
        FL_OFD => "open file description lock",
        _ => "lock",
    };
    Object::Descriptor(entry.pid, entry.fd, format!("{kind} from byte {}, {} bytes", entry.start, entry.len))
}

fn take(cx: &mut Settle<'_>, pid: i32, entries: &[FileLockEntry]) -> Result<()> {
    let mut batch = Batch::new();
    let calls = entries.iter().map(|entry| request(cx, &mut batch, entry)).collect::<Result<Vec<_>>>()?;
    cx.run_in(pid, &mut batch)?;
    for (entry, call) in entries.iter().zip(calls) {
        if batch.result(call).is_ok() && is_breaking(entry) {
            break_lease(cx, entry)?;
        }
        if let Err(errno) = batch.result(call) {
            return Err(Error::Kernel {
                object: object(entry),
                action: "take it again".into(),
                errno,
                remedy: match errno {
                    Errno::AGAIN | Errno::ACCESS => "another process has a lock on or the file open: end that one",
                    _ => "",
                },
            });
        }
    }
    Ok(())
}

fn request(cx: &Settle<'_>, batch: &mut Batch, entry: &FileLockEntry) -> Result<Call> {
    let fd = Arg::from(entry.fd);
    let kind = entry.r#type as i32;
    match entry.flag {
        FL_FLOCK => {
            let operation = match kind {
                libc::F_RDLCK => libc::LOCK_SH,
                libc::F_WRLCK => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            Ok(batch.attempt(libc::SYS_flock, [fd, Arg::from(operation | libc::LOCK_NB)]))
        }
        FL_LEASE => {
            let kind = if is_breaking(entry) { before_break(cx, entry)? } else { kind };
            // In a user namespace it takes the owner of the file.
            let owner = match users::are_mapped() {
                true => Some(rustix::fs::fstat(file_of(cx, entry)?)),
                false => None,
            };
            let owner =
                owner.transpose().map_err(|e| Error::kernel(object(entry), "ask for the owner of its file", e))?;
            if let Some(stat) = &owner {
                batch.call(libc::SYS_setfsuid, [users::user_inside(stat.st_uid).into()]);
            }
            let taken = batch.attempt(libc::SYS_fcntl, [fd, Arg::from(libc::F_SETLEASE), Arg::from(kind)]);
            if owner.is_some() {
                batch.call(libc::SYS_setfsuid, [Arg::Val(0)]);
            }
            Ok(taken)
        }
        FL_POSIX | FL_OFD => {
            let command = if entry.flag == FL_POSIX { libc::F_SETLK } else { libc::F_OFD_SETLK };
            let lock = batch.bytes(&raw_lock(kind, entry.start, entry.len));
            Ok(batch.attempt(libc::SYS_fcntl, [fd, Arg::from(command), Arg::from(lock)]))
        }
        other => Err(Error::bad_image("filelocks.img", format!("no lock has the flag {other:#x}"))),
    }
}

fn is_breaking(entry: &FileLockEntry) -> bool {
    entry.flag == FL_LEASE && entry.r#type & LEASE_BREAKING != 0
}

/// Our descriptor of the file that a lock is on.
fn file_of<'a>(cx: &Settle<'a>, entry: &FileLockEntry) -> Result<BorrowedFd<'a>> {
    let here = (entry.pid, entry.fd);
    let id = cx.places.iter().find(|(_, places)| places.contains(&here)).map(|(id, _)| id);
    let file = id.and_then(|id| cx.built.get(id));
    file.map(|file| file.as_fd()).ok_or_else(|| {
        Error::bad_image("filelocks.img", format!("process {} has no descriptor {}", entry.pid, entry.fd))
    })
}

/// What a lease that is being broken was before. The kernel tells only what it
/// is to become; a reader's lease needs a file that is not open for writing.
fn before_break(cx: &Settle<'_>, entry: &FileLockEntry) -> Result<i32> {
    if (entry.r#type & !LEASE_BREAKING) as i32 == libc::F_RDLCK {
        return Ok(libc::F_WRLCK);
    }
    let flags = rustix::fs::fcntl_getfl(file_of(cx, entry)?)
        .map_err(|e| Error::kernel(object(entry), "read the flags of its file", e))?;
    Ok(if flags & OFlags::RWMODE == OFlags::RDONLY { libc::F_RDLCK } else { libc::F_WRLCK })
}

/// Begins to break a lease, as the image has it: by opening the file without
/// waiting. The process has had its signal already, so for the moment there is
/// nobody to get it.
fn break_lease(cx: &Settle<'_>, entry: &FileLockEntry) -> Result<()> {
    let failed = |action: &'static str| move |e| Error::kernel(object(entry), action, e);
    let file = file_of(cx, entry)?;
    let owner = fcntl::getown_ex(file).map_err(failed("read who gets its signals"))?;
    let (uid, euid) = fcntl::getowner_uids(file).map_err(failed("read who gets its signals"))?;
    let nobody = Owner { kind: OwnerKind::Process, pid: 0 };
    fcntl::setown_ex(file, nobody).map_err(failed("set who gets its signals"))?;
    let access = match (entry.r#type & !LEASE_BREAKING) as i32 {
        libc::F_RDLCK => OFlags::RDONLY,
        _ => OFlags::WRONLY,
    };
    let opened = reopen(file, access | OFlags::NONBLOCK);
    creds::with_uids(uid, euid, || fcntl::setown_ex(file, owner)).map_err(failed("set who gets its signals"))?;
    match opened {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(Error::kernel(object(entry), "begin to break it", errno)),
    }
}

/// A `struct flock` of 64-bit systems: type, whence (of the file's start), four
/// bytes of filling, start, length, pid, four bytes of filling.
fn raw_lock(kind: i32, start: i64, len: i64) -> [u8; 32] {
    let mut raw = [0; 32];
    raw[..2].copy_from_slice(&(kind as i16).to_le_bytes());
    raw[8..16].copy_from_slice(&start.to_le_bytes());
    raw[16..24].copy_from_slice(&len.to_le_bytes());
    raw
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;
    use cryonaut_kernel::sys::fcntl::{LockOwner, RangeLock, set_lease, set_lock};
    use rustix::fs::FlockOperation;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_layout_is_that_of_libc() {
        assert_eq!(size_of::<libc::flock>(), 32);
        assert_eq!(std::mem::offset_of!(libc::flock, l_start), 8);
        assert_eq!(std::mem::offset_of!(libc::flock, l_len), 16);
    }

    #[test]
    fn each_lock_is_written_once_and_only_if_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"text").unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let twin = file.try_clone().unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
        let range = |kind, start, len| RangeLock { kind, start, len };
        set_lock(&file, LockOwner::Description, &range(libc::F_RDLCK, 100, 0)).unwrap();
        let mut bench = Bench::new();
        let error = bench.collect(file.as_fd()).unwrap_err();
        assert!(error.to_string().contains("--file-locks"), "{error}");

        bench = Bench::new();
        bench.options.file_locks = true;
        // Not earlier: the bench's duplicates are of this process, and closing one ends it.
        set_lock(&file, LockOwner::Process, &range(libc::F_WRLCK, 2, 3)).unwrap();
        bench.collect_all(&[file.as_fd(), twin.as_fd()]).unwrap();
        let image = bench.commit();
        let mut locks: Vec<FileLockEntry> = image.images.read_all(ImageKind::FileLocks, None).unwrap();
        locks.sort_by_key(|lock| lock.flag);
        let (pid, fd) = (std::process::id() as i32, file.as_raw_fd());
        let lock = |flag, kind: i32, start, len| FileLockEntry { flag, r#type: kind as u32, pid, fd, start, len };
        assert_eq!(
            locks,
            [
                lock(FL_POSIX, libc::F_WRLCK, 2, 3),
                lock(FL_FLOCK, libc::F_RDLCK, 0, 0),
                lock(FL_OFD, libc::F_RDLCK, 100, 0),
            ]
        );
    }

    #[test]
    fn leases_are_written_also_while_being_broken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        set_lease(&file, libc::F_WRLCK).unwrap();
        // Else the signal that it is being broken would end this process.
        fcntl::setown_ex(&file, Owner { kind: OwnerKind::Process, pid: 0 }).unwrap();
        let mut bench = Bench::new();
        bench.options.file_locks = true;
        bench.collect(file.as_file().as_fd()).unwrap();
        let image = bench.commit();
        let locks: Vec<FileLockEntry> = image.images.read_all(ImageKind::FileLocks, None).unwrap();
        assert_eq!((locks[0].flag, locks[0].r#type as i32, locks.len()), (FL_LEASE, libc::F_WRLCK, 1));
        // Somebody wants to read.
        assert_eq!(reopen(file.as_file().as_fd(), OFlags::RDONLY | OFlags::NONBLOCK).unwrap_err(), Errno::AGAIN);
        let mut bench = Bench::new();
        bench.options.file_locks = true;
        bench.collect(file.as_file().as_fd()).unwrap();
        let image = bench.commit();
        let locks: Vec<FileLockEntry> = image.images.read_all(ImageKind::FileLocks, None).unwrap();
        assert_eq!(locks[0].r#type, libc::F_RDLCK as u32 | LEASE_BREAKING);
    }
}
