//! The calling thread's ids, for the moment of one call.

use super::check;
use rustix::io::Errno;

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

fn set(uid: u32, euid: u32, saved: u32) -> Result<(), Errno> {
    // SAFETY: takes three integers, touches no memory of the caller; the raw call changes the calling thread alone.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, euid, saved) }).map(drop)
}
