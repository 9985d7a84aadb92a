//! Making processes with chosen pids: clone3(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use bitflags::bitflags;
use linux_raw_sys::general as uapi;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, test_kill_process, test_kill_process_group};

use super::check;

bitflags! {
    /// The `CLONE_*` that make sense for a process with an address space of its own. Those that would let parent
    /// and child run on one stack (`CLONE_VM`, `CLONE_THREAD`, `CLONE_VFORK`, `CLONE_SIGHAND`) are not here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct CloneFlags: u64 {
        const FS = uapi::CLONE_FS as u64;
        const FILES = uapi::CLONE_FILES as u64;
        const SYSVSEM = uapi::CLONE_SYSVSEM as u64;
        const IO = uapi::CLONE_IO as u64;
        /// Child of the caller's parent.
        const PARENT = uapi::CLONE_PARENT as u64;
        /// All signals to their default action. Linux 5.5.
        const CLEAR_SIGHAND = 1 << 32;
        const NEWNS = uapi::CLONE_NEWNS as u64;
        const NEWCGROUP = uapi::CLONE_NEWCGROUP as u64;
        const NEWUTS = uapi::CLONE_NEWUTS as u64;
        const NEWIPC = uapi::CLONE_NEWIPC as u64;
        const NEWUSER = uapi::CLONE_NEWUSER as u64;
        const NEWPID = uapi::CLONE_NEWPID as u64;
        const NEWNET = uapi::CLONE_NEWNET as u64;
        const NEWTIME = uapi::CLONE_NEWTIME as u64;
    }
}

/// How a child is made.
#[derive(Debug, Clone, Copy)]
pub struct Spawn<'a> {
    pub flags: CloneFlags,
    /// What its parent gets when it ends; 0 for nothing.
    pub exit_signal: i32,
    /// Its pid in its own pid namespace, then in that one's parent, and so on; empty for the next free. EEXIST
    /// when one is taken. Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE over these namespaces. Linux 5.5.
    pub set_tid: &'a [i32],
    /// The cgroup2 directory it is born into. Linux 5.7.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The pid namespace that it is born into, if that is not the caller's: for [`spawn_idle`].
    pub pid_namespace: Option<BorrowedFd<'a>>,
}

impl Default for Spawn<'_> {
    fn default() -> Self {
        Self { flags: CloneFlags::empty(), exit_signal: libc::SIGCHLD, set_tid: &[], cgroup: None, pid_namespace: None }
    }
}

/// A new child.
#[derive(Debug)]
pub struct Child {
    /// As seen by the caller.
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

const _: () = assert!(size_of::<uapi::clone_args>() == 88);

/// clone3(2) with a copy of the address space, like fork: returns twice, `None` in the child.
///
/// # Safety
/// The child has one thread and a copy of memory in which locks of the other threads (the allocator's among them)
/// may be held for ever, and libc's record of its own pid and tid is its parent's. Until it calls execve or `_exit`
/// it may do only what is async-signal-safe (signal-safety(7)) and must not unwind or return past the caller.
pub unsafe fn clone3(spawn: &Spawn<'_>) -> Result<Option<Child>, Errno> {
    let mut pidfd = -1i32;
    let mut flags = spawn.flags.bits() | u64::from(uapi::CLONE_PIDFD);
    if spawn.cgroup.is_some() {
        flags |= uapi::CLONE_INTO_CGROUP;
    }
    let args = uapi::clone_args {
        flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: spawn.exit_signal as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if spawn.set_tid.is_empty() { 0 } else { spawn.set_tid.as_ptr() as u64 },
        set_tid_size: spawn.set_tid.len() as u64,
        cgroup: spawn.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` has the size told; set_tid points to set_tid_size ints; the kernel writes one int to `pidfd`.
    // No flag of CloneFlags shares memory, so parent and child return on copies of this stack.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<uapi::clone_args>()) };
    let Some(pid) = Pid::from_raw(check(answer)? as i32) else {
        return Ok(None);
    };
    // SAFETY: CLONE_PIDFD has stored a descriptor that was made for this call; nobody else owns it.
    Ok(Some(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }))
}

/// Runs `body` in a new child, which ends with the exit code it returns.
///
/// # Safety
/// `body` is bound by the rules of [`clone3`]: only async-signal-safe calls. A panic in it aborts the child.
pub unsafe fn spawn(spawn: &Spawn<'_>, body: impl FnOnce() -> i32) -> Result<Child, Errno> {
    // SAFETY: the child runs `body`, for which the caller vouches, and leaves by _exit.
    match unsafe { clone3(spawn) }? {
        Some(child) => Ok(child),
        None => {
            let _abort = AbortOnUnwind;
            let code = body();
            // SAFETY: _exit ends the child without running anything of the parent's copy.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Of a child that waits at a pipe for its maker: waits until that has ended without a word (`true`), or has said one.
pub(crate) fn is_deserted(reader: BorrowedFd<'_>) -> bool {
    let mut byte = [0u8];
    loop {
        match rustix::io::read(reader, &mut byte) {
            Ok(0) => return true,
            Err(Errno::INTR) => {}
            _ => return false,
        }
    }
}

/// Closes every other descriptor in a child that ends with `_exit`: whoever waits for the end of a pipe of ours must not
/// wait for the child's.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>], and: BorrowedFd<'_>) {
    let is_kept = |fd: i32| fd == and.as_raw_fd() || kept.iter().any(|kept| kept.as_raw_fd() == fd);
    let last = kept.iter().map(|kept| kept.as_raw_fd()).fold(and.as_raw_fd(), i32::max);
    // SAFETY: others are left without their descriptors, but nothing in this process uses or drops them: see above.
    unsafe {
        for fd in (0..last).filter(|fd| !is_kept(*fd)) {
            libc::syscall(libc::SYS_close, fd);
        }
        libc::syscall(libc::SYS_close_range, last as u32 + 1, u32::MAX, 0);
    }
}

/// Keeps a panic from unwinding into the copy of the parent's frames.
pub(crate) struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Runs `body` in a child of ours that is in another pid namespace, under the number `pid` there or any that is free, and
/// ends with the exit code that it returns. The child dies with the calling thread.
///
/// It is a copy of this process with one thread, which may allocate and begin threads: libc's fork(3) has put that
/// right. Only what another thread of ours holds at this moment, a lock of its own, is never let go there.
pub fn spawn_inside(
    pid_namespace: BorrowedFd<'_>,
    pid: Option<i32>,
    body: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let set_tid = pid.map(|pid| [pid]);
    let set_tid = set_tid.as_ref().map_or(&[][..], |tids| tids);
    // SAFETY: fork(3) leaves a copy of this process with this thread alone, in which the C library works. What leaves
    // it does so by _exit.
    let middle = check(unsafe { libc::fork() })?;
    if middle == 0 {
        let _abort = AbortOnUnwind;
        // Only children of whoever enters a pid namespace are in it: so the child is made by a process that has no
        // other business, and is nonetheless ours.
        let how = Spawn { flags: CloneFlags::PARENT, exit_signal: 0, set_tid, ..Spawn::default() };
        let made = super::namespace::enter(pid_namespace, libc::CLONE_NEWPID).and_then(|()| {
            // SAFETY: this process has one thread, so nothing in its memory is held by others.
            unsafe { clone3(&how) }
        });
        let told = match made {
            Ok(None) => {
                drop((reader, writer));
                let code = if die_with_parent() { body() } else { 1 };
                // SAFETY: _exit ends the child.
                unsafe { libc::_exit(code) }
            }
            Ok(Some(child)) => child.pid.as_raw_nonzero().get(),
            Err(errno) => -errno.raw_os_error(),
        };
        let _ = rustix::io::write(&writer, &told.to_ne_bytes());
        // SAFETY: as above.
        unsafe { libc::_exit(0) }
    }
    drop(writer);
    let mut told = [0u8; 4];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut told));
    if let Some(middle) = Pid::from_raw(middle) {
        let _ = super::wait::wait(super::wait::Who::One(middle));
    }
    let told = if read? == told.len() { i32::from_ne_bytes(told) } else { -Errno::SRCH.raw_os_error() };
    let pid = Pid::from_raw(told).filter(|_| told > 0).ok_or_else(|| Errno::from_raw_os_error(-told))?;
    // It is ours, and stays a zombie until we take it.
    Ok(Child { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())? })
}

/// Whether the calling process will die with its parent. One that is in another pid namespace cannot ask who that is.
fn die_with_parent() -> bool {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).is_ok()
}

/// Makes a child that does nothing but wait to be seized: it dies with the thread that made it, or one that is a sibling
/// (`PARENT`) with the process, blocks all signals and sleeps in ppoll(2). It has a copy of the caller's memory and (without `FILES`) descriptors.
pub fn spawn_idle(how: &Spawn<'_>) -> Result<Child, Errno> {
    let maker = rustix::process::getpid();
    let elsewhere = how.flags.contains(CloneFlags::NEWPID) || how.pid_namespace.is_some();
    // No death signal tells a sibling of our end.
    let is_sibling = how.flags.contains(CloneFlags::PARENT);
    let orphaned = !elsewhere && !is_sibling;
    let us = is_sibling.then(|| rustix::process::pidfd_open(maker, PidfdFlags::empty())).transpose()?;
    let number = us.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let home = how.pid_namespace.map(step_aside).transpose()?;
    // SAFETY: the body makes system calls without libc's help (prctl, rt_sigprocmask, getppid, ppoll) and neither
    // allocates nor unwinds.
    let born = unsafe {
        spawn(how, || {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            // The maker may have died before the call above.
            if orphaned && libc::syscall(libc::SYS_getppid) != i64::from(maker.as_raw_nonzero().get()) {
                return 1;
            }
            let all = u64::MAX;
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, none, size_of::<u64>());
            // A negative number is passed over.
            let mut end = libc::pollfd { fd: number, events: libc::POLLIN, revents: 0 };
            while end.revents == 0 {
                libc::syscall(libc::SYS_ppoll, &raw mut end, 1, none, none, size_of::<u64>());
            }
            1
        })
    };
    if let Some(home) = home {
        super::namespace::enter(home.as_fd(), libc::CLONE_NEWPID)?;
    }
    born
}

/// From now on, children of the calling thread are born into another pid namespace; gives the one that it is in.
fn step_aside(there: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let own = rustix::fs::open("/proc/thread-self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    super::namespace::enter(there, libc::CLONE_NEWPID)?;
    Ok(own)
}

/// Makes a child that ends at once with a status such as wait(2) reports (without a core dump); it stays a zombie until
/// the caller waits for it.
pub fn spawn_ended(status: i32) -> Result<Child, Errno> {
    let (signal, code) = (status & 0x7f, (status >> 8) & 0xff);
    // SAFETY: the body makes async-signal-safe calls alone, with locals as their memory.
    unsafe {
        spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
            if signal == 0 {
                return code;
            }
            let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
            libc::signal(signal, libc::SIG_DFL);
            let none = 0u64;
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, old, size_of::<u64>());
            libc::syscall(libc::SYS_kill, libc::syscall(libc::SYS_getpid), signal);
            code
        })
    }
}

/// Has a program killed when the calling thread ends, whatever happens: what it does must not happen behind the back of
/// whoever clears up after us.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // We may have ended before.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: the closure makes two system calls, and neither allocates nor touches memory that others may hold a lock of.
    unsafe { command.pre_exec(bind) }
}

/// A field of /proc/loadavg (proc(5)), counted from zero.
pub(crate) fn loadavg(field: usize) -> Option<String> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().nth(field).map(str::to_owned)
}

/// Numbers that no process, thread or process group of our pid namespace has, those first that the kernel comes to last: it
/// goes on from the number that it gave out last (the fifth field of /proc/loadavg, proc(5)), and round (kernel/pid.c).
pub fn free_numbers() -> impl Iterator<Item = i32> {
    /// Below, no number is given out a second time (RESERVED_PIDS, kernel/pid.c).
    const LOWEST: i32 = 300;
    let last = loadavg(4).and_then(|last| last.parse().ok()).unwrap_or(0);
    let is_free = |number: &i32| {
        let free = |tried: Result<(), Errno>| tried == Err(Errno::SRCH);
        let number = Pid::from_raw(*number);
        number.is_some_and(|pid| free(test_kill_process(pid)) && free(test_kill_process_group(pid)))
    };
    (LOWEST..last).rev().filter(is_free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_number_is_nobodys() {
        let child = spawn_idle(&Spawn::default()).unwrap();
        let number = child.pid.as_raw_nonzero().get();
        assert!(!free_numbers().any(|free| free == number || free == std::process::id() as i32));
        assert!(free_numbers().take(100).all(|free| !std::path::Path::new(&format!("/proc/{free}")).exists()));
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        crate::sys::wait::wait(crate::sys::wait::Who::One(child.pid)).unwrap();
    }
    use crate::sys::wait::{WaitStatus, Who, wait};

    fn end(child: &Child) {
        rustix::process::kill_process(child.pid, rustix::process::Signal::KILL).unwrap();
        assert!(wait(Who::One(child.pid)).unwrap().1.is_end());
    }

    #[test]
    fn a_child_gets_the_pid_asked_for() {
        let first = spawn_idle(&Spawn::default()).unwrap();
        let wanted = [first.pid.as_raw_nonzero().get()];
        let taken = spawn_idle(&Spawn { set_tid: &wanted, ..Spawn::default() });
        assert_eq!(taken.err(), Some(Errno::EXIST));
        end(&first);
        let again = spawn_idle(&Spawn { set_tid: &wanted, ..Spawn::default() }).unwrap();
        assert_eq!(again.pid, first.pid);
        end(&again);
    }

    #[test]
    fn a_child_reports_its_code() {
        // SAFETY: the body calls nothing.
        let child = unsafe { spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || 7) }.unwrap();
        assert_eq!(wait(Who::One(child.pid)), Ok((child.pid, WaitStatus::Exited(7))));
    }

    #[test]
    fn a_child_ends_as_told() {
        for raw in [0, 42 << 8, libc::SIGSEGV, libc::SIGKILL] {
            let child = spawn_ended(raw).unwrap();
            assert_eq!(wait(Who::One(child.pid)), Ok((child.pid, WaitStatus::from_raw(raw))));
        }
    }

    #[test]
    fn a_sibling_ends_with_who_made_it() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        // SAFETY: the body makes system calls alone.
        let maker = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                let how = Spawn { flags: CloneFlags::PARENT, exit_signal: 0, ..Spawn::default() };
                let pid = spawn_idle(&how).map_or(0, |child| child.pid.as_raw_nonzero().get());
                i32::from(rustix::io::write(&writer, &pid.to_ne_bytes()) != Ok(4))
            })
        };
        let maker = maker.unwrap();
        let mut told = [0; 4];
        assert_eq!(rustix::io::read(&reader, &mut told), Ok(4));
        let sibling = Pid::from_raw(i32::from_ne_bytes(told)).unwrap();
        assert_eq!(wait(Who::One(maker.pid)), Ok((maker.pid, WaitStatus::Exited(0))));
        assert_eq!(wait(Who::One(sibling)), Ok((sibling, WaitStatus::Exited(1))));
    }

    #[test]
    fn namespaces_begin_with_their_own_pid() {
        let how = Spawn { flags: CloneFlags::NEWPID | CloneFlags::CLEAR_SIGHAND, set_tid: &[1], ..Spawn::default() };
        let child = spawn_idle(&how).unwrap();
        let status = crate::proc::Task::open(child.pid).unwrap().status().unwrap();
        assert_eq!(status.ns_pid.last(), Some(&1));
        end(&child);
    }
}
