//! Mounts through the new mount API (open_tree(2), move_mount(2), mount_setattr(2), statmount(2)): by descriptors, so
//! that a mount is the same whatever has been mounted over it.
//!
//! open_tree(2) and mount_setattr(2) want a mount of the caller's own mount namespace, or one that stands nowhere.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as uapi;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::check;
use super::namespace::enter;
use super::process::{Spawn, close_all_but, spawn};
use super::wait::{Who, wait};

/// How events of mounting and unmounting pass between a mount and others (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// Both ways, among the peers of a group.
    Shared,
    /// From the group of which it was a peer.
    Slave,
    /// Neither way, and it cannot be cloned.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// What is to be changed of a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear before.
    pub clear: u64,
    /// How events pass from now on.
    pub propagation: Option<Propagation>,
    /// A user namespace by whose maps owners are to be shown. Only for a mount that stands nowhere yet.
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Changes a mount, or with `recursive` all of the tree below it.
pub fn change(mount: BorrowedFd<'_>, recursive: bool, what: Change<'_>) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: what.set | if what.id_map.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: what.clear,
        propagation: what.propagation.map_or(0, Propagation::flag),
        userns_fd: what.id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (path, size) = (c"".as_ptr(), size_of::<libc::mount_attr>());
    // SAFETY: `path` is a C string; the kernel reads `size` bytes of `attr`.
    let answer =
        unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), path, flags, &raw const attr, size) };
    check(answer).map(drop)
}

/// A copy of the mount at a path, showing what is there from then on; without what is mounted below. It stands nowhere
/// and goes with its descriptor, if it is not attached. Its propagation is that of the original.
pub fn clone_at(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(directory, path, flags)
}

/// The same of a path as the caller sees it.
pub fn clone_path(path: &[u8]) -> Result<OwnedFd, Errno> {
    clone_at(CWD, path)
}

/// Attaches a mount that stands nowhere to a directory (or a file, if it shows one), over what is mounted there already.
pub fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", place, c"", flags)
}

/// Makes `to`, which is private, a peer of what `from` is a peer of, and gives it the same master. Both show the same file
/// system, and `from` no less of it. Linux 5.15.
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_SET_GROUP;
    rustix::mount::move_mount(from, c"", to, c"", flags)
}

/// The id of the mount through which a file was opened, as in mountinfo.
pub fn id_of(file: BorrowedFd<'_>) -> Result<i32, Errno> {
    id_at(file, c"", AtFlags::EMPTY_PATH)
}

/// The same of a path below a directory.
pub fn id_at(directory: BorrowedFd<'_>, path: &std::ffi::CStr, flags: AtFlags) -> Result<i32, Errno> {
    let found = rustix::fs::statx(directory, path, flags | AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOTSUP);
    }
    Ok(found.stx_mnt_id as i32)
}

/// pivot_root(2) to a mount of this namespace, and the end of everything that was below the root until now, upon which
/// `upon` mounts stood. The calling thread's working directory becomes the new root.
pub fn become_root(mount: BorrowedFd<'_>, upon: usize) -> Result<(), Errno> {
    rustix::process::fchdir(mount)?;
    rustix::process::pivot_root(c".", c".")?;
    // What has been the root stands upon the new one now (pivot_root(2), "pivot_root(".", ".")").
    for _ in 0..=upon {
        rustix::mount::unmount(c".", rustix::mount::UnmountFlags::DETACH)?;
    }
    rustix::process::chdir(c"/")
}

/// Gives the calling thread a mount namespace of its own, a copy of `namespace`, in which nothing is heard of others any
/// more, nor do they hear of it. It ends with the thread. Needs a thread that shares its directories with none, as
/// [`within`](super::namespace::within) makes one.
///
/// The copy belongs to the same user namespace. In one that belonged to ours, no mount could be taken away from what it
/// hides (`lock_mnt_tree`, fs/namespace.c). A process of its own makes it, since no thread may enter a user namespace.
pub fn copy_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    let owner = super::namespace::owner(namespace)?;
    let [(answers, answer), (end, ended)] = [pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?];
    // SAFETY: the body makes system calls alone, by wrappers that neither allocate nor touch anything of libc's.
    let child = unsafe {
        spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
            super::signal::block_all();
            close_all_but(&[namespace, owner.as_fd(), answer.as_fd()], end.as_fd());
            let copied = match enter(owner.as_fd(), libc::CLONE_NEWUSER) {
                // It is in there.
                Ok(()) | Err(Errno::INVAL) => {
                    enter(namespace, libc::CLONE_NEWNS).and_then(|()| check(libc::unshare(libc::CLONE_NEWNS)).map(drop))
                }
                refused => refused,
            };
            let errno = copied.err().map_or(0, Errno::raw_os_error);
            let _ = rustix::io::write(&answer, &errno.to_ne_bytes());
            // Until the copy has been entered.
            while rustix::io::read(&end, &mut [0]) == Err(Errno::INTR) {}
            0
        })
    }?;
    drop(answer);
    let mut told = [0; size_of::<i32>()];
    let copied =
        match retry_on_intr(|| rustix::io::read(&answers, &mut told)).map(|len| (len, i32::from_ne_bytes(told))) {
            Ok((4, 0)) => enter(child.pidfd.as_fd(), libc::CLONE_NEWNS),
            Ok((4, errno)) => Err(Errno::from_raw_os_error(errno)),
            _ => Err(Errno::CHILD),
        };
    drop(ended);
    let _ = wait(Who::One(child.pid));
    copied.and_then(|()| keep_to_itself())
}

/// Makes all mounts below the calling thread's root private.
pub fn keep_to_itself() -> Result<(), Errno> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, rustix::fs::Mode::empty())?;
    change(root.as_fd(), true, Change { propagation: Some(Propagation::Private), ..Change::default() })
}

/// Lines of `uid_map` or `gid_map`: first id inside, first id outside, how many.
pub type IdMap = Vec<(u32, u32, u32)>;

/// By which maps a mount of the caller's namespace shows owners; both empty if by none. `ENOSYS` or `ENOTSUP` before
/// Linux 6.15.
pub fn id_maps(mount: BorrowedFd<'_>) -> Result<(IdMap, IdMap), Errno> {
    let unique = StatxFlags::from_bits_retain(uapi::STATX_MNT_ID_UNIQUE);
    let found = rustix::fs::statx(mount, c"", AtFlags::EMPTY_PATH, unique)?;
    let wanted = u64::from(uapi::STATMOUNT_MNT_UIDMAP | uapi::STATMOUNT_MNT_GIDMAP);
    let request = uapi::mnt_id_req {
        size: size_of::<uapi::mnt_id_req>() as u32,
        spare: 0,
        mnt_id: found.stx_mnt_id,
        param: wanted,
        mnt_ns_id: 0,
    };
    let mut answer = vec![0u64; 1 << 13];
    let size = answer.len() * size_of::<u64>();
    const SYS_STATMOUNT: i64 = uapi::__NR_statmount as i64;
    // SAFETY: the kernel reads one mnt_id_req, whose size it tells, and writes at most `size` bytes to `answer`.
    check(unsafe { libc::syscall(SYS_STATMOUNT, &raw const request, answer.as_mut_ptr(), size, 0) })?;
    let bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let mask = u64::from_ne_bytes(bytes[8..16].try_into().unwrap_or_default());
    if mask & wanted != wanted {
        return Err(Errno::NOTSUP);
    }
    let texts = &bytes[size_of::<uapi::statmount>()..];
    let map = |count: usize, offset: usize| parse_map(texts, word(count), word(offset));
    Ok((
        map(std::mem::offset_of!(uapi::statmount, mnt_uidmap_num), std::mem::offset_of!(uapi::statmount, mnt_uidmap)),
        map(std::mem::offset_of!(uapi::statmount, mnt_gidmap_num), std::mem::offset_of!(uapi::statmount, mnt_gidmap)),
    ))
}

/// Zero-terminated lines `inside outside count`, one after the other.
fn parse_map(texts: &[u8], count: u32, offset: u32) -> IdMap {
    let lines = texts.get(offset as usize..).unwrap_or_default().split(|byte| *byte == 0);
    let line = |line: &[u8]| {
        let mut numbers = std::str::from_utf8(line).ok()?.split_ascii_whitespace().map_while(|word| word.parse().ok());
        Some((numbers.next()?, numbers.next()?, numbers.next()?))
    };
    lines.take(count as usize).filter_map(line).collect()
}

/// Whether a mount is one (a directory of one is not).
#[must_use]
pub fn is_top(file: impl AsFd) -> bool {
    const MOUNT_ROOT: u64 = uapi::STATX_ATTR_MOUNT_ROOT as u64;
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.bits() & MOUNT_ROOT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_mount_can_be_changed() {
        let Ok(copy) = clone_path(b"/proc") else { return };
        let change_it = |set, clear| change(copy.as_fd(), false, Change { set, clear, ..Change::default() });
        change_it(libc::MOUNT_ATTR_RDONLY, 0).unwrap();
        let flags = rustix::fs::fstatvfs(&copy).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        change(copy.as_fd(), false, Change { propagation: Some(Propagation::Shared), ..Change::default() }).unwrap();
        let other = clone_path(b"/proc").unwrap();
        change(other.as_fd(), false, Change { propagation: Some(Propagation::Private), ..Change::default() }).unwrap();
        join_group(copy.as_fd(), other.as_fd()).unwrap();
        assert_ne!(id_of(copy.as_fd()).unwrap(), id_of(other.as_fd()).unwrap());
        assert!(is_top(&copy));
        match id_maps(copy.as_fd()) {
            Ok(maps) => assert_eq!(maps, (Vec::new(), Vec::new())),
            Err(errno) => assert!(matches!(errno, Errno::NOSYS | Errno::NOTSUP | Errno::NOENT), "{errno}"),
        }
    }

    #[test]
    fn maps_are_read() {
        assert_eq!(parse_map(b"x\x000 1000 10\x0010 5 1\0rest\0", 2, 2), [(0, 1000, 10), (10, 5, 1)]);
        assert!(parse_map(b"", 3, 100).is_empty());
    }
}
