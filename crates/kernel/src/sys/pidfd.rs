//! PIDFD_THREAD (Linux 6.9): a pidfd of a thread that is not its process's first.
//! PIDFD_GET_INFO (Linux 6.13): what a pidfd knows without /proc, and of a reaped process too (6.15).
//! process_mrelease(2) (Linux 5.15): its memory freed by somebody else than itself.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bitflags::bitflags;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::check;

bitflags! {
    /// `PIDFD_INFO_*`: which fields hold something.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Fields: u64 {
        /// Always told.
        const PID = 1;
        /// Always told.
        const CREDS = 2;
        const CGROUPID = 4;
        /// Only of a process that was reaped while a pidfd was open. Linux 6.15.
        const EXIT = 8;
        /// Linux 6.16.
        const COREDUMP = 16;
    }
}

/// `struct pidfd_info` of linux/pidfd.h, in its first published size.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PidfdInfo {
    /// What is told; asked for on the way in.
    pub fields: Fields,
    /// Inode-like id of the cgroup v2.
    pub cgroup_id: u64,
    pub pid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub ruid: u32,
    pub rgid: u32,
    pub euid: u32,
    pub egid: u32,
    pub suid: u32,
    pub sgid: u32,
    pub fsuid: u32,
    pub fsgid: u32,
    /// As wait(2) reports it.
    pub exit_code: i32,
}

const PIDFD_GET_INFO: Opcode = opcode::read_write::<PidfdInfo>(0xff, 11);
const _: () = assert!(size_of::<PidfdInfo>() == 64 && PIDFD_GET_INFO == 0xc040_ff0b);

/// Opens a pidfd through which the descriptors of a thread can be had (pidfd_getfd(2)), be it the first of its process or
/// another. Of another EINVAL before Linux 6.9.
pub fn open_thread(tid: Pid) -> Result<OwnedFd, Errno> {
    /// PIDFD_THREAD (linux/pidfd.h).
    const THREAD: u32 = libc::O_EXCL as u32;
    // One of the process serves as well where it can be opened, on any kernel.
    match pidfd_open(tid, PidfdFlags::empty()) {
        Err(Errno::INVAL | Errno::NOENT) => pidfd_open(tid, PidfdFlags::from_bits_retain(THREAD)),
        opened => opened,
    }
}

/// Asks a pidfd. ENOTTY before Linux 6.13; ESRCH for a process that has been reaped, unless `EXIT` is asked for.
pub fn get_info(pidfd: impl AsFd, wanted: Fields) -> Result<PidfdInfo, Errno> {
    let mut info = PidfdInfo { fields: wanted, ..PidfdInfo::default() };
    // SAFETY: PIDFD_GET_INFO reads and writes one pidfd_info of the size that is in its number. Every field is an
    // integer; unknown bits are valid Fields.
    unsafe { ioctl(pidfd, Updater::<PIDFD_GET_INFO, PidfdInfo>::new(&mut info)) }?;
    Ok(info)
}

/// Frees private anonymous memory of a process that has been killed, beside what it frees itself on its way out.
/// EINVAL if it (or another that shares its memory) has not been killed, ESRCH if the memory is gone already.
pub fn release_memory(pidfd: impl AsFd) -> Result<(), Errno> {
    // SAFETY: process_mrelease(pidfd, flags = 0) takes no address, and what it frees is that of a process which will
    // not run any more.
    let answer = unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd.as_fd().as_raw_fd(), 0u32) };
    check(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdGetfdFlags, getpid, getppid, pidfd_getfd};

    #[test]
    fn only_of_the_killed() {
        use crate::sys::process::{Spawn, spawn_idle};
        let child = spawn_idle(&Spawn::default()).unwrap();
        let refused = release_memory(&child.pidfd).unwrap_err();
        assert!(matches!(refused, Errno::INVAL | Errno::NOSYS), "{refused}");
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        if let Err(errno) = release_memory(&child.pidfd) {
            assert!(matches!(errno, Errno::SRCH | Errno::NOSYS), "{errno}");
        }
        crate::sys::wait::wait(crate::sys::wait::Who::One(child.pid)).unwrap();
    }

    #[test]
    fn every_thread_has_its_descriptors() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let get = || {
            let thread = open_thread(rustix::thread::gettid())?;
            pidfd_getfd(&thread, file.as_raw_fd(), PidfdGetfdFlags::empty())
        };
        // Tests run in threads of their own, but for the first.
        for got in [get(), std::thread::scope(|s| s.spawn(get).join()).unwrap()] {
            assert!(matches!(got, Ok(_) | Err(Errno::INVAL)), "{got:?}");
        }
    }

    #[test]
    fn tells_own_pids() {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        match get_info(&pidfd, Fields::PID | Fields::CREDS) {
            Ok(info) => {
                assert_eq!(info.pid, std::process::id());
                assert_eq!(info.ppid as i32, getppid().unwrap().as_raw_nonzero().get());
                assert_eq!(info.euid, rustix::process::geteuid().as_raw());
            }
            Err(errno) => assert_eq!(errno, Errno::NOTTY),
        }
    }
}
