//! Waiting for children and tracees, and what their status word says.

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// Why a tracee reported a ptrace event. Everything but `Stop` comes only when its option was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PtraceEvent {
    Fork,
    Vfork,
    Clone,
    Exec,
    VforkDone,
    Exit,
    Seccomp,
    /// After PTRACE_INTERRUPT, and the first stop of a child that was seized automatically.
    Stop,
    Other(u8),
}

impl PtraceEvent {
    fn from_raw(event: u8) -> Self {
        match u32::from(event) {
            linux_raw_sys::ptrace::PTRACE_EVENT_FORK => Self::Fork,
            linux_raw_sys::ptrace::PTRACE_EVENT_VFORK => Self::Vfork,
            linux_raw_sys::ptrace::PTRACE_EVENT_CLONE => Self::Clone,
            linux_raw_sys::ptrace::PTRACE_EVENT_EXEC => Self::Exec,
            linux_raw_sys::ptrace::PTRACE_EVENT_VFORK_DONE => Self::VforkDone,
            linux_raw_sys::ptrace::PTRACE_EVENT_EXIT => Self::Exit,
            linux_raw_sys::ptrace::PTRACE_EVENT_SECCOMP => Self::Seccomp,
            linux_raw_sys::ptrace::PTRACE_EVENT_STOP => Self::Stop,
            _ => Self::Other(event),
        }
    }
}

/// What a status word of wait4(2) says about a seized tracee or a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStatus {
    /// Exit code, 0 to 255.
    Exited(i32),
    /// Killed by a signal.
    Killed {
        signal: i32,
        core_dumped: bool,
    },
    /// Signal-delivery-stop: the signal is about to be delivered. For a child that is not traced: stopped by
    /// the signal.
    SignalStop(i32),
    /// Entry or exit of a system call. Needs `TRACESYSGOOD`, else it looks like a SIGTRAP's `SignalStop`.
    SyscallStop,
    /// The whole group is stopped by this signal (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU).
    GroupStop(i32),
    Event(PtraceEvent),
    Continued,
}

impl WaitStatus {
    /// Decodes a status word.
    pub fn from_raw(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            return Self::Exited(libc::WEXITSTATUS(status));
        }
        if libc::WIFSIGNALED(status) {
            return Self::Killed { signal: libc::WTERMSIG(status), core_dumped: libc::WCOREDUMP(status) };
        }
        if libc::WIFCONTINUED(status) {
            return Self::Continued;
        }
        let signal = libc::WSTOPSIG(status);
        match PtraceEvent::from_raw((status >> 16) as u8) {
            PtraceEvent::Other(0) if signal == libc::SIGTRAP | 0x80 => Self::SyscallStop,
            PtraceEvent::Other(0) => Self::SignalStop(signal),
            // ptrace(2), "Group-stop": under PTRACE_SEIZE it is EVENT_STOP with one of the stopping signals.
            PtraceEvent::Stop if signal != libc::SIGTRAP => Self::GroupStop(signal),
            event => Self::Event(event),
        }
    }

    /// The task is no more.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Killed { .. })
    }
}

/// Whom to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Any child or tracee of the calling thread's process.
    Any,
    /// One child, or one thread that is traced.
    One(Pid),
}

impl Who {
    fn raw(self) -> i32 {
        match self {
            Self::Any => -1,
            Self::One(pid) => pid.as_raw_nonzero().get(),
        }
    }
}

/// Waits until a child or tracee changes state, and takes the report. Threads and clone children without
/// SIGCHLD are included (`__WALL`). EINTR is the caller's to handle. Who is traced by another thread of the
/// caller is waited for as well, see [`wait_own`].
pub fn wait(who: Who) -> Result<(Pid, WaitStatus), Errno> {
    wait4(who, libc::__WALL)?.ok_or(Errno::CHILD)
}

/// As [`wait`], but `None` instead of blocking when nobody has changed state.
pub fn try_wait(who: Who) -> Result<Option<(Pid, WaitStatus)>, Errno> {
    wait4(who, libc::__WALL | libc::WNOHANG)
}

/// As [`wait`], but tells nothing of children and tracees of the caller's other threads.
pub fn wait_own(who: Who) -> Result<(Pid, WaitStatus), Errno> {
    wait4(who, libc::__WALL | libc::__WNOTHREAD)?.ok_or(Errno::CHILD)
}

fn wait4(who: Who, options: i32) -> Result<Option<(Pid, WaitStatus)>, Errno> {
    let mut status = 0i32;
    // SAFETY: the kernel writes one int to `status`; the usage pointer is null, which it takes as "not wanted".
    let answer = unsafe {
        libc::syscall(libc::SYS_wait4, who.raw(), &raw mut status, options, std::ptr::null_mut::<libc::rusage>())
    };
    let pid = check(answer)?;
    Ok(Pid::from_raw(pid as i32).map(|pid| (pid, WaitStatus::from_raw(status))))
}

/// Whether a child has ended, without reaping it: its zombie, and so its pid, stays.
/// `None` while it lives. The kernel's answer is in the form of [`WaitStatus`].
pub fn peek_end(pid: Pid) -> Result<Option<WaitStatus>, Errno> {
    let mut info = super::signal::SigInfo::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the kernel writes one siginfo_t to `info`, which has its size and alignment; usage is not wanted.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PID,
            pid.as_raw_nonzero().get(),
            &raw mut info,
            options,
            std::ptr::null_mut::<libc::rusage>(),
        )
    };
    check(answer)?;
    if info.signo() == 0 {
        return Ok(None);
    }
    let mut status = [0; 4];
    status.copy_from_slice(&info.as_bytes()[24..28]); // si_status of the SIGCHLD layout
    let status = i32::from_ne_bytes(status);
    Ok(Some(match info.code() {
        libc::CLD_EXITED => WaitStatus::Exited(status),
        code => WaitStatus::Killed { signal: status, core_dumped: code == libc::CLD_DUMPED },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_every_kind_of_stop() {
        let stopped = |event: i32, signal: i32| WaitStatus::from_raw(event << 16 | signal << 8 | 0x7f);
        assert_eq!(WaitStatus::from_raw(3 << 8), WaitStatus::Exited(3));
        assert_eq!(WaitStatus::from_raw(0x80 | 11), WaitStatus::Killed { signal: 11, core_dumped: true });
        assert_eq!(WaitStatus::from_raw(0xffff), WaitStatus::Continued);
        assert_eq!(stopped(0, libc::SIGTRAP | 0x80), WaitStatus::SyscallStop);
        assert_eq!(stopped(0, libc::SIGSEGV), WaitStatus::SignalStop(libc::SIGSEGV));
        assert_eq!(stopped(128, libc::SIGTRAP), WaitStatus::Event(PtraceEvent::Stop));
        assert_eq!(stopped(128, libc::SIGTSTP), WaitStatus::GroupStop(libc::SIGTSTP));
        assert_eq!(stopped(6, libc::SIGTRAP), WaitStatus::Event(PtraceEvent::Exit));
        assert_eq!(stopped(99, libc::SIGTRAP), WaitStatus::Event(PtraceEvent::Other(99)));
    }

    #[test]
    fn peeking_leaves_the_zombie() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 5"]).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let end = loop {
            if let Some(end) = peek_end(pid).unwrap() {
                break end;
            }
            std::thread::yield_now();
        };
        assert_eq!(end, WaitStatus::Exited(5));
        assert_eq!(wait(Who::One(pid)), Ok((pid, WaitStatus::Exited(5))));
        assert_eq!(peek_end(pid), Err(Errno::CHILD));
        assert!(child.wait().is_err());
    }
}
