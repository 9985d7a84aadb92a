//! Probes of the mount API.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount};

use super::present;
use crate::sys::check;

/// A copy of the mount of /proc that stands nowhere and goes with its descriptor.
fn detached() -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, "/proc", flags)
}

pub(super) fn open_tree() -> Result<(), Errno> {
    detached().map(drop)
}

pub(super) fn mount_setattr() -> Result<(), Errno> {
    let tree = detached()?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_NOEXEC, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (path, flags, size) = (c"".as_ptr(), libc::AT_EMPTY_PATH, size_of::<libc::mount_attr>());
    // SAFETY: `path` is a C string; the kernel reads `size` bytes of `attr`.
    let answer =
        unsafe { libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), path, flags, &raw const attr, size) };
    check(answer).map(drop)
}

pub(super) fn set_group() -> Result<(), Errno> {
    // Flags are checked before paths are looked up: where SET_GROUP is not known the answer is EINVAL.
    let nowhere = "/proc/self/nothing-there";
    match move_mount(CWD, nowhere, CWD, nowhere, MoveMountFlags::MOVE_MOUNT_SET_GROUP) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(()) => Err(Errno::IO),
    }
}

/// `struct mnt_id_req` of linux/mount.h in its first size.
#[repr(C)]
struct MntIdReq {
    size: u32,
    spare: u32,
    mnt_id: u64,
    param: u64,
}

const _: () = assert!(size_of::<MntIdReq>() == 24);

const SYS_STATMOUNT: i64 = linux_raw_sys::general::__NR_statmount as i64;
const SYS_LISTMOUNT: i64 = linux_raw_sys::general::__NR_listmount as i64;

/// `LSMT_ROOT`: the root of the caller's mount namespace.
const LSMT_ROOT: u64 = u64::MAX;

/// One mount below the root, by its unique id.
fn any_mount() -> Result<u64, Errno> {
    let request = MntIdReq { size: size_of::<MntIdReq>() as u32, spare: 0, mnt_id: LSMT_ROOT, param: 0 };
    let mut ids = [0u64; 1];
    // SAFETY: the kernel reads one mnt_id_req, whose size it tells, and writes at most one id to `ids`.
    let answer = unsafe { libc::syscall(SYS_LISTMOUNT, &raw const request, ids.as_mut_ptr(), ids.len(), 0) };
    present(check(answer)? == 1)?;
    Ok(ids[0])
}

pub(super) fn list_mount() -> Result<(), Errno> {
    any_mount().map(drop)
}

pub(super) fn stat_mount() -> Result<(), Errno> {
    const STATMOUNT_MNT_BASIC: u64 = 2;
    let mnt_id = any_mount()?;
    let request = MntIdReq { size: size_of::<MntIdReq>() as u32, spare: 0, mnt_id, param: STATMOUNT_MNT_BASIC };
    let mut answer = [0u64; 128];
    // SAFETY: the kernel reads one mnt_id_req, whose size it tells, and writes at most the bytes of `answer`.
    check(unsafe { libc::syscall(SYS_STATMOUNT, &raw const request, answer.as_mut_ptr(), size_of_val(&answer), 0) })
        .map(drop)
}
