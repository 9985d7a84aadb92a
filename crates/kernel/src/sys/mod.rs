//! System calls that rustix does not have, as safe functions.
//!
//! They answer with the kernel's bare [`Errno`]: what object the call was about, and what the user can do, the
//! caller knows. Nothing here retries, logs or allocates more than the answer needs. Calls that rustix has
//! (pidfd_open, pidfd_getfd, prlimit, capget, prctl, setns, memfd, openat2, ...) are not repeated.

pub mod absent_pages;
pub mod acting;
pub mod aside;
pub mod bpf;
mod bpf_insn;
pub mod bpf_iter;
pub mod bpf_memory;
pub mod btf;
pub mod conversation;
pub mod creds;
mod direct_map;
pub mod epoll;
pub mod fanotify;
pub mod fcntl;
pub mod file_references;
pub mod glance;
pub mod handle;
pub mod huge;
pub mod inotify;
pub mod io_uring;
pub mod ip_queue;
pub mod kcmp;
pub mod mapping_flags;
pub mod mapping_watch;
pub mod mem;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod nf_tables;
pub mod packet;
pub mod pidfd;
pub mod posix_queues;
pub mod posix_timers;
pub mod process;
pub mod ptrace;
pub mod restart_block;
pub mod sched;
pub mod scm_rights;
pub mod semaphore_undo;
pub mod shmem;

pub mod signal;
pub mod sock_diag;
pub mod socket;
pub mod socket_glance;
pub mod socket_inside;
pub mod sysv;
pub mod sysv_queues;
pub mod tcp_inside;
pub mod tcp_repair;
pub mod thread_calls;
pub mod thread_cgroups;
pub mod thread_state;
pub mod timerfd;
pub mod tty;
pub mod tun;
pub mod unix_diag;
pub mod unix_memory;
pub mod unix_message;
pub mod unix_name;
pub mod unix_waiting;
pub mod wait;
pub mod xtables;

use rustix::io::Errno;

/// The answer of `libc::syscall` or of a libc function that returns -1 and sets errno.
pub(crate) fn check<T: Copy + PartialOrd + From<i8>>(answer: T) -> Result<T, Errno> {
    if answer >= T::from(0) {
        return Ok(answer);
    }
    Err(last_errno())
}

/// The calling thread's errno.
pub(crate) fn last_errno() -> Errno {
    // SAFETY: __errno_location returns the address of a thread-local int that lives as long as the thread.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
