//! Scheduling attributes, I/O priority and robust futex lists of a task, by its tid.
//!
//! CPU affinity and nice are in rustix (`rustix::thread::sched_getaffinity`, `rustix::process::getpriority_process`).

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// `struct sched_attr` of linux/sched/types.h, with the utilisation clamps of Linux 5.3.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedAttr {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`: 1 reset on fork, 2 reclaim, 4 report overrun, 0x20 and 0x40 the clamps are set.
    pub flags: u64,
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Of SCHED_DEADLINE, in nanoseconds; of the fair policies the slice (6.12).
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

const _: () = assert!(size_of::<SchedAttr>() == 56);

impl SchedAttr {
    /// `SCHED_FLAG_RESET_ON_FORK`.
    pub const RESET_ON_FORK: u64 = 1;
}

/// Reads the attributes (sched_getattr(2)).
pub fn sched_getattr(tid: Pid) -> Result<SchedAttr, Errno> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as u32;
    // SAFETY: the kernel is told the size of `attr` and writes at most that.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.as_raw_nonzero().get(), &raw mut attr, size, 0) };
    check(answer)?;
    Ok(attr)
}

/// Sets the attributes (sched_setattr(2)).
pub fn sched_setattr(tid: Pid, attr: &SchedAttr) -> Result<(), Errno> {
    let mut attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: the kernel reads as many bytes as the size field says, which is all of `attr`. It writes only that
    // field, and only with E2BIG: `attr` is a copy of this frame.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, tid.as_raw_nonzero().get(), &raw mut attr, 0) };
    check(answer).map(drop)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// I/O priority of a thread: class (0 none, 1 real time, 2 best effort, 3 idle) in bits 13 to 15, level in the
/// lowest three (ioprio_get(2)).
pub fn ioprio_get(tid: Pid) -> Result<u16, Errno> {
    // SAFETY: takes two integers, touches no memory of the caller.
    let answer = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.as_raw_nonzero().get()) };
    check(answer).map(|value| value as u16)
}

/// Sets the I/O priority of a thread.
pub fn ioprio_set(tid: Pid, priority: u16) -> Result<(), Errno> {
    let priority = i32::from(priority);
    // SAFETY: takes three integers, touches no memory of the caller.
    let answer =
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.as_raw_nonzero().get(), priority) };
    check(answer).map(drop)
}

/// Address (in the thread's memory) and size of the head of its robust futex list; address 0 for none
/// (get_robust_list(2)).
pub fn get_robust_list(tid: Pid) -> Result<(u64, u64), Errno> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one pointer to `head` and one size_t to `len`.
    let answer =
        unsafe { libc::syscall(libc::SYS_get_robust_list, tid.as_raw_nonzero().get(), &raw mut head, &raw mut len) };
    check(answer)?;
    Ok((head, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Spawn, spawn_idle};

    #[test]
    fn attributes_of_another_task_can_be_changed() {
        let child = spawn_idle(&Spawn::default()).unwrap();
        let attr = sched_getattr(child.pid).unwrap();
        assert_eq!((attr.policy, attr.nice), (libc::SCHED_OTHER as u32, 0));
        let batch = SchedAttr {
            policy: libc::SCHED_BATCH as u32,
            nice: 5,
            flags: SchedAttr::RESET_ON_FORK,
            ..SchedAttr::default()
        };
        sched_setattr(child.pid, &batch).unwrap();
        let read = sched_getattr(child.pid).unwrap();
        assert_eq!((read.policy, read.nice, read.flags), (libc::SCHED_BATCH as u32, 5, 1));
        ioprio_set(child.pid, 3 << 13).unwrap();
        assert_eq!(ioprio_get(child.pid), Ok(3 << 13));
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        crate::sys::wait::wait(crate::sys::wait::Who::One(child.pid)).unwrap();
    }

    #[test]
    fn own_robust_list_is_registered_by_libc() {
        let (head, len) = get_robust_list(rustix::thread::gettid()).unwrap();
        assert_ne!(head, 0);
        assert_eq!(len, 24);
    }
}
