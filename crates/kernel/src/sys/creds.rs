//! The calling thread's ids, for the moment of one call.

use super::check;
use rustix::io::Errno;
use std::marker::PhantomData;

/// Runs `call` with these real and effective user ids, and goes back to the own ones. Only the calling thread changes
/// (setresuid(2), C library/kernel differences).
pub fn with_uids<T>(uid: u32, euid: u32, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let own = (rustix::process::getuid().as_raw(), rustix::process::geteuid().as_raw());
    if own == (uid, euid) {
        return call();
    }
    const KEEP: u32 = u32::MAX;
    set(uid, euid, KEEP)?;
    let answer = call();
    set(own.0, own.1, KEEP)?;
    answer
}

/// Runs `call` with these supplementary groups. Only the calling thread changes.
pub fn with_groups<T>(groups: &[u32], call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let own: Vec<u32> = rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
    set_groups(groups)?;
    let answer = call();
    set_groups(&own)?;
    answer
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the list is as long as told, and only read; the raw call changes the calling thread alone.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Capabilities stay when users change (SECBIT_NO_SETUID_FIXUP, linux/securebits.h).
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// As long as this is there, files that the calling thread makes belong to another user and group: file systems that
/// belong to a user namespace take none of users who are not in it (EOVERFLOW). Threads and children that are made
/// meanwhile inherit it.
#[derive(Debug)]
pub struct FilesOf {
    own: (libc::c_long, libc::c_long),
    bits: libc::c_ulong,
    /// It is of one thread.
    thread: PhantomData<*const ()>,
}

impl FilesOf {
    /// Needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP. Rights in the file system stay as they are.
    pub fn new(uid: u32, gid: u32) -> Result<FilesOf, Errno> {
        // SAFETY: prctl with this option takes no pointers and changes nothing.
        let bits = check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_GET_SECUREBITS, 0, 0, 0, 0) })?;
        let bits = bits as libc::c_ulong;
        set_securebits(bits | NO_SETUID_FIXUP)?;
        Ok(FilesOf { own: set_files_owner(uid.into(), gid.into()), bits, thread: PhantomData })
    }
}

impl Drop for FilesOf {
    fn drop(&mut self) {
        set_files_owner(self.own.0, self.own.1);
        // Less than was given before: it cannot fail.
        let _ = set_securebits(self.bits);
    }
}

fn set_securebits(bits: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: prctl with this option takes an integer, and changes the calling thread alone.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_SECUREBITS, bits, 0, 0, 0) }).map(drop)
}

/// Gives the user and group of before.
fn set_files_owner(uid: libc::c_long, gid: libc::c_long) -> (libc::c_long, libc::c_long) {
    // SAFETY: these take integers, and change the calling thread alone; they answer what was before.
    unsafe { (libc::syscall(libc::SYS_setfsuid, uid), libc::syscall(libc::SYS_setfsgid, gid)) }
}

fn set(uid: u32, euid: u32, saved: u32) -> Result<(), Errno> {
    // SAFETY: takes three integers, touches no memory of the caller; the raw call changes the calling thread alone.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, euid, saved) }).map(drop)
}
