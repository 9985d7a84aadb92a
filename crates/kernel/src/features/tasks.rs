//! Probes of what is needed to read and to make processes.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_open};

use super::{errno, present, proc_errno};
use crate::proc::{Task, values::Namespace};
use crate::sys::process::{Child, CloneFlags, Spawn, spawn, spawn_idle};
use crate::sys::ptrace::{self, Options};
use crate::sys::wait::{Who, wait};
use crate::sys::{self, mem, pidfd};

/// A child that sleeps until it is dropped. It tells its parent nothing, so that a caller who reaps any child on
/// SIGCHLD never meets it.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Result<Self, Errno> {
        spawn_idle(&Spawn { exit_signal: 0, ..Spawn::default() }).map(Self)
    }

    /// The child seized and stopped.
    fn traced() -> Result<Self, Errno> {
        let child = Self::new()?;
        ptrace::seize(child.pid(), Options::EXITKILL)?;
        ptrace::interrupt(child.pid())?;
        wait(Who::One(child.pid()))?;
        Ok(child)
    }

    fn pid(&self) -> Pid {
        self.0.pid
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // The child is ours and not yet reaped: the signal reaches it, and waiting for it ends.
        let _ = rustix::process::kill_process(self.pid(), rustix::process::Signal::KILL);
        reap(self.pid());
    }
}

/// Waits until a child that is about to end has ended.
fn reap(pid: Pid) {
    loop {
        match wait(Who::One(pid)) {
            Ok((_, status)) if !status.is_end() => {}
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Makes a child with these flags that ends at once.
fn born_with(flags: CloneFlags) -> Result<(), Errno> {
    let how = Spawn { flags, exit_signal: 0, ..Spawn::default() };
    // SAFETY: the body calls nothing.
    let child = unsafe { spawn(&how, || 0) }?;
    reap(child.pid);
    Ok(())
}

pub(super) fn clone3_set_tid() -> Result<(), Errno> {
    // Pid 1 is taken in every namespace, and that is found out only after the right to choose was checked.
    match spawn_idle(&Spawn { set_tid: &[1], exit_signal: 0, ..Spawn::default() }) {
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
        Ok(child) => {
            drop(Sleeper(child));
            Err(Errno::INVAL)
        }
    }
}

pub(super) fn ns_last_pid() -> Result<(), Errno> {
    let path = "/proc/sys/kernel/ns_last_pid";
    // Opening for writing asks for the right; writing would race with every fork on the machine.
    std::fs::OpenOptions::new().write(true).open(path).map(drop).map_err(errno)
}

pub(super) fn ptrace_seize() -> Result<(), Errno> {
    Sleeper::traced().map(drop)
}

pub(super) fn pidfd_getfd() -> Result<(), Errno> {
    let child = Sleeper::new()?;
    let (reader, _writer) = rustix::pipe::pipe()?;
    // The child was made with a copy of our descriptors, before this pipe: take any that it has.
    let task = Task::open(child.pid()).map_err(proc_errno)?;
    let fd = task.fds().map_err(proc_errno)?.first().copied().unwrap_or(reader.as_raw_fd());
    rustix::process::pidfd_getfd(&child.0.pidfd, fd, PidfdGetfdFlags::empty()).map(drop)
}

pub(super) fn pidfd_thread() -> Result<(), Errno> {
    let open = || pidfd::open_thread(rustix::thread::gettid()).map(drop);
    // One that is not the first of this process.
    let probe = std::thread::Builder::new().spawn(open).map_err(errno)?;
    probe.join().unwrap_or(Err(Errno::IO))
}

pub(super) fn kcmp() -> Result<(), Errno> {
    present(sys::kcmp::resource(getpid(), getpid(), sys::kcmp::Shared::Vm)?.is_eq())
}

pub(super) fn kcmp_epoll() -> Result<(), Errno> {
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
    let set = create(CreateFlags::CLOEXEC)?;
    let (reader, _writer) = rustix::pipe::pipe()?;
    add(&set, &reader, EventData::new_u64(0), EventFlags::IN)?;
    let (set, fd) = (set.as_raw_fd(), reader.as_raw_fd());
    present(sys::kcmp::epoll_target(getpid(), fd, getpid(), set, fd, 0)?.is_eq())
}

pub(super) fn process_vm() -> Result<(), Errno> {
    static WORD: u64 = 0x0123_4567_89ab_cdef;
    let mut read = [0; 8];
    mem::read(getpid(), &raw const WORD as u64, &mut read)?;
    present(u64::from_ne_bytes(read) == WORD)
}

pub(super) fn children() -> Result<(), Errno> {
    let me = Task::current().map_err(proc_errno)?;
    me.children(rustix::thread::gettid()).map(drop).map_err(proc_errno)
}

pub(super) fn ptrace_rseq() -> Result<(), Errno> {
    ptrace::rseq(Sleeper::traced()?.pid()).map(drop)
}

pub(super) fn ptrace_sud() -> Result<(), Errno> {
    ptrace::syscall_user_dispatch(Sleeper::traced()?.pid()).map(drop)
}

pub(super) fn seccomp_get_filter() -> Result<(), Errno> {
    match ptrace::seccomp_filter(Sleeper::traced()?.pid(), 0) {
        // The child has no filter, unless this process has one.
        Ok(_) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub(super) fn suspend_seccomp() -> Result<(), Errno> {
    ptrace::set_options(Sleeper::traced()?.pid(), Options::EXITKILL | Options::SUSPEND_SECCOMP)
}

pub(super) fn set_mm_map() -> Result<(), Errno> {
    present(rustix::process::virtual_memory_map_config_struct_size()? > 0)
}

pub(super) fn posix_timers() -> Result<(), Errno> {
    Task::current().and_then(|me| me.timers()).map(drop).map_err(proc_errno)
}

pub(super) fn timer_overruns() -> Result<(), Errno> {
    sys::posix_timers::inside(rustix::thread::gettid().as_raw_nonzero().get()).map(drop)
}

pub(super) fn restart_block() -> Result<(), Errno> {
    sys::restart_block::of_threads(getpid().as_raw_nonzero().get()).map(drop)
}

pub(super) fn timer_restore_ids() -> Result<(), Errno> {
    // linux/prctl.h, Linux 6.16.
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: u64 = 2;
    // SAFETY: GET asks whether the mode is on; it takes no address.
    sys::check(unsafe { libc::syscall(libc::SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) }).map(drop)
}

pub(super) fn loginuid() -> Result<(), Errno> {
    // It belongs to a thread: one that ends with the probe gets the value it has.
    let probe = std::thread::Builder::new().spawn(|| {
        let path = "/proc/thread-self/loginuid";
        let value = std::fs::read(path)?;
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        std::io::Write::write_all(&mut file, &value)
    });
    probe.map_err(errno)?.join().unwrap_or_else(|_| Err(Errno::IO.into())).map_err(errno)
}

pub(super) fn time_namespace() -> Result<(), Errno> {
    let me = Task::current().map_err(proc_errno)?;
    me.namespace(Namespace::Time).map_err(proc_errno)?.ok_or(Errno::NOENT)?;
    born_with(CloneFlags::NEWTIME)
}

pub(super) fn user_namespace() -> Result<(), Errno> {
    born_with(CloneFlags::NEWUSER)
}

pub(super) fn pidfd_get_info() -> Result<(), Errno> {
    let pidfd: OwnedFd = pidfd_open(getpid(), PidfdFlags::empty())?;
    pidfd::get_info(&pidfd, pidfd::Fields::PID).map(drop)
}
