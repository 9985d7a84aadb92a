//! Stopping threads, and the stops that a held thread reports.

use crate::{Error, Result, trace};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::{Task, stat::State};
use cryonaut_kernel::sys::ptrace::Options;
use cryonaut_kernel::sys::wait::{PtraceEvent, WaitStatus};
use std::time::{Duration, Instant};

/// How a thread came to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was running or sleeping and was interrupted.
    Interrupted,
    /// Job control had stopped it with this signal.
    ByJobControl(i32),
}

/// Options for a thread that is only visited: it survives the tracer, and a
/// system-call stop is told from a breakpoint (which also keeps the kernel from
/// turning it into a signal should the tracer die there).
pub const VISIT: Options = Options::TRACESYSGOOD;

/// Options for what is being built: it dies with the tracer. What it creates
/// has them too.
pub const BUILD: Options = Options::TRACESYSGOOD.union(Options::EXITKILL);

/// To be added for a thread whose process is to end should we.
pub const DIES_WITH_US: Options = Options::EXITKILL;

/// To be added for a thread whose seccomp filters must not see what its hand
/// does.
pub const SUSPEND_SECCOMP: Options = Options::SUSPEND_SECCOMP;

/// Attaches to a thread and asks it to stop; [`wait_stopped`] waits for that.
/// `Ok(false)` if the thread is gone or a zombie.
pub fn seize(tid: i32, options: Options) -> Result<bool> {
    match trace::seize(tid, options) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(false),
        Err(Errno::PERM) if is_dead(tid) => return Ok(false),
        Err(errno) => {
            return Err(Error::Ptrace { tid, op: "attach to", errno });
        }
    }
    interrupt(tid)
}

/// Asks a thread to stop. `Ok(false)` if it is gone.
fn interrupt(tid: i32) -> Result<bool> {
    match trace::interrupt(tid) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(errno) => Err(Error::Ptrace { tid, op: "interrupt", errno }),
    }
}

fn is_dead(tid: i32) -> bool {
    let stat = trace::id(tid).ok().and_then(|t| Task::open(t).ok()?.stat().ok());
    stat.is_none_or(|s| matches!(s.state, State::Zombie | State::Dead))
}

/// Waits for a thread that is about to end and that nobody holds.
pub(crate) fn wait_zombie(tid: i32) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    let begun = Instant::now();
    while !is_dead(tid) {
        if begun.elapsed() > LIMIT {
            return Err(wont_stop(tid, LIMIT));
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    Ok(())
}

/// Waits until a thread that was asked to stop does. A signal that arrives
/// first is delivered: the thread then stops at its handler's first
/// instruction, a state like any other. `None` if it ended instead.
pub fn wait_stopped(tid: i32, limit: Duration) -> Result<Option<Stopped>> {
    let begun = Instant::now();
    loop {
        let status = match poll(tid, begun, limit)? {
            Some(s) => s,
            None => return Ok(None),
        };
        let give = match status {
            WaitStatus::Event(PtraceEvent::Stop) => return Ok(Some(Stopped::Interrupted)),
            WaitStatus::GroupStop(signal) => return Ok(Some(Stopped::ByJobControl(signal))),
            WaitStatus::SignalStop(signal) => signal,
            WaitStatus::SyscallStop | WaitStatus::Event(_) | WaitStatus::Continued => 0,
            WaitStatus::Exited(_) | WaitStatus::Killed { .. } => return Ok(None),
        };
        // Whatever a thread stops for, the kernel takes as what it was asked for (kernel/signal.c, ptrace_stop).
        if interrupt(tid)? {
            trace::resume(tid, give)?;
        }
    }
}

fn poll(tid: i32, begun: Instant, limit: Duration) -> Result<Option<WaitStatus>> {
    const SPINS: u32 = 20;
    let mut nap = Duration::from_micros(20);
    let mut spins = 0;
    loop {
        // The end of a process's first thread is not told before that of all others.
        let dead = spins == SPINS && is_dead(tid);
        match trace::try_wait(tid) {
            Ok(None) if !dead => {}
            Err(Errno::CHILD) => return Ok(None),
            told => return told.map_err(|errno| Error::Ptrace { tid, op: "wait for", errno }),
        }
        if spins < SPINS {
            spins += 1;
            rustix::thread::sched_yield();
            continue;
        }
        if begun.elapsed() > limit {
            return Err(wont_stop(tid, limit));
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(2));
    }
}

fn wont_stop(tid: i32, limit: Duration) -> Error {
    let task = trace::id(tid).ok().and_then(|t| Task::open(t).ok());
    let state =
        task.as_ref().and_then(|t| t.stat().ok()).map_or_else(|| "unknown".into(), |s| format!("{:?}", s.state));
    let place =
        task.and_then(|t| t.read("wchan").ok()).map_or_else(String::new, |w| String::from_utf8_lossy(&w).into());
    Error::WontStop { tid, seconds: limit.as_secs(), state, place }
}

/// Waits for the next status of a held thread.
fn next(tid: i32) -> Result<WaitStatus> {
    match trace::wait(tid)? {
        WaitStatus::Exited(code) => Err(Error::Died { tid, how: format!("exit status {code}") }),
        WaitStatus::Killed { signal, .. } => Err(Error::Died { tid, how: format!("signal {signal}") }),
        status => Ok(status),
    }
}

/// Lets a thread that stands on a `syscall` instruction make that one call,
/// and returns what it gave.
pub fn run_one_call(tid: i32) -> Result<i64> {
    trace::resume_to_syscall(tid)?;
    enter_call(tid)?;
    leave_call(tid)
}

/// Waits until a thread that was resumed stands at the entry of a call, and
/// lets it make that call; [`leave_call`] waits for the end of it.
pub(crate) fn enter_call(tid: i32) -> Result<()> {
    wait_syscall_stop(tid)?;
    trace::resume_to_syscall(tid)
}

/// What the call gave that [`enter_call`] let a thread make.
pub(crate) fn leave_call(tid: i32) -> Result<i64> {
    wait_syscall_stop(tid)?;
    Ok(crate::arch::result(&trace::registers(tid)?))
}

fn wait_syscall_stop(tid: i32) -> Result<()> {
    while next(tid)? != WaitStatus::SyscallStop {
        trace::resume_to_syscall(tid)?;
    }
    Ok(())
}

/// Lets a thread that stands on a `syscall` instruction enter that call, and
/// interrupts it when it sleeps there. Returns what the call gave: a result,
/// or the kernel's wish to start it again.
pub fn run_until_asleep(tid: i32) -> Result<i64> {
    trace::resume_to_syscall(tid)?;
    enter_call(tid)?;
    let task = trace::id(tid).ok().and_then(|t| Task::open(t).ok());
    let mut interrupted = false;
    loop {
        match trace::try_wait(tid).map_err(|errno| Error::Ptrace { tid, op: "wait for", errno })? {
            Some(WaitStatus::SyscallStop) => {
                return Ok(crate::arch::result(&trace::registers(tid)?));
            }
            Some(_) => trace::resume_to_syscall(tid)?,
            None => {
                let asleep = task.as_ref().and_then(|t| t.stat().ok()).is_some_and(|s| s.state == State::Sleeping);
                if asleep && !interrupted {
                    trace::interrupt(tid).map_err(|errno| Error::Ptrace { tid, op: "interrupt", errno })?;
                    interrupted = true;
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
}

/// Waits until the thread stops before `signal`, whoever sent it: of one that
/// it sends itself, a kernel out of room for queued signals forgets the sender.
/// `true` if a stop signal from elsewhere was held back meanwhile.
pub fn wait_for_signal(tid: i32, signal: i32) -> Result<bool> {
    let mut stop_seen = false;
    loop {
        match next(tid)? {
            WaitStatus::SignalStop(s) if s == signal => return Ok(stop_seen),
            WaitStatus::SignalStop(s) if is_fault(s) => {
                return Err(Error::Died { tid, how: format!("signal {s} in the trampoline") });
            }
            WaitStatus::SignalStop(s) => {
                stop_seen |= s == libc::SIGSTOP;
                trace::resume(tid, 0)?;
            }
            _ => trace::resume(tid, 0)?,
        }
    }
}

/// Moves a thread from a stop before a signal, which it would get should we
/// die, on to one that leaves no trace. It runs nothing of its own meanwhile.
pub fn move_on(tid: i32) -> Result<()> {
    let failed = |errno| Error::Ptrace { tid, op: "interrupt", errno };
    trace::interrupt(tid).map_err(failed)?;
    trace::resume(tid, 0)?;
    wait_newborn(tid)
}

fn is_fault(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS | libc::SIGTRAP)
}

/// Waits for a thread that a hand has just created, which stops by itself
/// because its creator is held.
pub fn wait_newborn(tid: i32) -> Result<()> {
    loop {
        match next(tid)? {
            WaitStatus::Event(PtraceEvent::Stop) | WaitStatus::GroupStop(_) => return Ok(()),
            _ => trace::resume(tid, 0)?,
        }
    }
}

/// Takes the end of a killed thread from the kernel, so that no zombie of ours
/// holds its id.
pub fn reap(tid: i32) {
    while let Ok(status) = trace::wait(tid) {
        if status.is_end() {
            return;
        }
        let _ = trace::resume(tid, 0);
    }
}

/// The same for the init of a pid namespace, whose end somebody may hold up who has not waited for another there. Whether
/// it has come in this time.
pub fn reap_within(tid: i32, limit: Duration) -> bool {
    let begun = Instant::now();
    loop {
        match trace::try_wait(tid) {
            Ok(None) if begun.elapsed() > limit => return false,
            Ok(None) => std::thread::sleep(Duration::from_micros(100)),
            Ok(Some(status)) if !status.is_end() => drop(trace::resume(tid, 0)),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

/// The same for a whole process: a leader's end is not told before that of
/// all other threads.
pub fn reap_process(pid: i32) {
    let tids = trace::id(pid).ok().and_then(|p| Task::open(p).ok()?.tids().ok()).unwrap_or_default();
    for tid in tids {
        let tid = tid.as_raw_nonzero().get();
        if tid != pid {
            reap(tid);
        }
    }
    reap(pid);
}

/// Sends a signal to a process.
pub fn send(pid: i32, signal: i32) -> Result<()> {
    let failed = |errno| Error::Ptrace { tid: pid, op: "send a signal to", errno };
    let target = trace::id(pid).map_err(failed)?;
    cryonaut_kernel::sys::signal::kill(target, signal).map_err(failed)
}

/// Lets a held process die of a signal, and takes its end from the kernel.
pub fn die_of(pid: i32, signal: i32) -> Result<()> {
    send(pid, signal)?;
    if signal == libc::SIGKILL {
        reap(pid);
        return Ok(());
    }
    trace::set_sigmask(pid, 0)?;
    let mut give = 0;
    loop {
        trace::resume(pid, give)?;
        match trace::wait(pid)? {
            status if status.is_end() => return Ok(()),
            WaitStatus::SignalStop(s) => give = if s == signal { s } else { 0 },
            _ => give = 0,
        }
    }
}
