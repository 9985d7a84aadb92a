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

/// Runs `act` on a thread of its own to which the files that it makes belong to this user and group, with all of our
/// capabilities: a file system of another user namespace takes none of an owner that it does not know (EOVERFLOW).
pub fn as_owner<T: Send>((uid, gid): (u32, u32), act: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            let before = rustix::thread::capabilities(None)?;
            // SAFETY: the calls take numbers and change the credentials of this thread alone, which ends with `act`.
            unsafe {
                libc::syscall(libc::SYS_setfsgid, gid);
                libc::syscall(libc::SYS_setfsuid, uid);
            }
            // Those about files went with the user.
            rustix::thread::set_capabilities(None, before)?;
            Ok(act())
        });
        let thread = thread.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
