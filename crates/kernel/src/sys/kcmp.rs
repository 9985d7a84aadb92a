//! kcmp(2): whether two processes share a kernel object, and an order by which to sort the objects.
//!
//! The order is arbitrary but total and the same until the next boot, so that n descriptors are told apart in
//! n log n comparisons. ENOSYS where the kernel lacks CONFIG_KCMP.

use std::cmp::Ordering;
use std::os::fd::RawFd;

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// What two tasks may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Shared {
    /// Address space (CLONE_VM).
    Vm = 1,
    /// Descriptor table (CLONE_FILES).
    Files = 2,
    /// Root, cwd and umask (CLONE_FS).
    Fs = 3,
    /// Signal actions (CLONE_SIGHAND).
    Sighand = 4,
    /// I/O context (CLONE_IO).
    Io = 5,
    /// System V semaphore undo list (CLONE_SYSVSEM).
    Sysvsem = 6,
}

const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;

/// `struct kcmp_epoll_slot` of linux/kcmp.h.
#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// # Safety
/// For KCMP_EPOLL_TFD `second` must be the address of an [`EpollSlot`]; for other kinds it is an integer.
unsafe fn kcmp(one: Pid, two: Pid, kind: i32, first: u64, second: u64) -> Result<Ordering, Errno> {
    let (one, two) = (one.as_raw_nonzero().get(), two.as_raw_nonzero().get());
    // SAFETY: the caller vouches for `second`; the kernel takes nothing else as an address.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, one, two, kind, first, second) };
    match check(answer)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // "Not equal, but no order": reserved by the manual, used by no kernel.
        _ => Err(Errno::NOTSUP),
    }
}

/// Compares one resource of two tasks.
pub fn resource(one: Pid, two: Pid, shared: Shared) -> Result<Ordering, Errno> {
    // SAFETY: for these kinds the kernel takes no address.
    unsafe { kcmp(one, two, shared as i32, 0, 0) }
}

/// Compares the open file descriptions behind two descriptors; EBADF when one is not open.
pub fn file(one: Pid, one_fd: RawFd, two: Pid, two_fd: RawFd) -> Result<Ordering, Errno> {
    // SAFETY: for KCMP_FILE both arguments are descriptor numbers.
    unsafe { kcmp(one, two, KCMP_FILE, one_fd as u64, two_fd as u64) }
}

/// Compares the description behind `fd` of `one` with what `epoll` of `two` watches under the number `target`;
/// `offset` chooses among several with that number. ENOENT when there is none such.
pub fn epoll_target(
    one: Pid,
    fd: RawFd,
    two: Pid,
    epoll: RawFd,
    target: RawFd,
    offset: u32,
) -> Result<Ordering, Errno> {
    let slot = EpollSlot { efd: epoll as u32, tfd: target as u32, toff: offset };
    // SAFETY: `slot` is an EpollSlot that outlives the call.
    unsafe { kcmp(one, two, KCMP_EPOLL_TFD, fd as u64, &raw const slot as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::epoll;
    use std::os::fd::AsRawFd;

    #[test]
    fn tells_duplicates_from_others() {
        let me = rustix::process::getpid();
        let file_a = tempfile::tempfile().unwrap();
        let file_b = tempfile::tempfile().unwrap();
        let twin = file_a.try_clone().unwrap();
        let (a, b, t) = (file_a.as_raw_fd(), file_b.as_raw_fd(), twin.as_raw_fd());
        assert_eq!(file(me, a, me, t), Ok(Ordering::Equal));
        let order = file(me, a, me, b).unwrap();
        assert_ne!(order, Ordering::Equal);
        assert_eq!(file(me, b, me, a), Ok(order.reverse()));
        assert_eq!(file(me, a, me, 99_999), Err(Errno::BADF));
        assert_eq!(resource(me, me, Shared::Vm), Ok(Ordering::Equal));
        let parent = rustix::process::getppid().unwrap();
        assert_ne!(resource(me, parent, Shared::Files), Ok(Ordering::Equal));
    }

    #[test]
    fn finds_what_an_epoll_watches() {
        let me = rustix::process::getpid();
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        epoll::add(&set, &reader, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
        let (set, fd) = (set.as_raw_fd(), reader.as_raw_fd());
        assert_eq!(epoll_target(me, fd, me, set, fd, 0), Ok(Ordering::Equal));
        assert_eq!(epoll_target(me, fd, me, set, fd, 1), Err(Errno::NOENT));
    }
}
