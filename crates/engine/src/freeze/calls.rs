//! The calls that threads are in before they are held: in some they cannot be
//! stopped, of some it matters how long they have lasted, and some are not the
//! program's but the kernel's own.

use super::pid_of;
use crate::attributes::{restart, thread};
use crate::{Error, Object, Result, parallel};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Syscall;
use cryonaut_kernel::sys::thread_calls::{self, Glance};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Threads whose calls are looked at before the first of them is held.
pub(super) const CALLS_AT_ONCE: usize = 128;

/// The calls that several threads are in, for those of which a moment more or
/// less does not matter. The others are to be looked at again, each right before it is held.
pub(super) fn calls_of(task: &Task, tids: &[i32], seen: Option<&BTreeMap<i32, Glance>>) -> Vec<(i32, Option<Syscall>)> {
    let in_proc = |tid: i32| task.thread(pid_of(tid).ok()?).syscall().ok();
    let does_not_matter = |tid: i32, call: &Syscall| !is_vfork(tid, *call) && !restart::is_limited(tid, *call);
    if tids.len() == 1 {
        return vec![(tids[0], None)];
    }
    let calls = match seen {
        Some(seen) => tids.iter().map(|tid| seen.get(tid).map(|glance| glance.call)).collect(),
        None => parallel::map(tids.to_vec(), in_proc),
    };
    tids.iter().zip(calls).map(|(&tid, call)| (tid, call.filter(|call| does_not_matter(tid, call)))).collect()
}

/// A glance at all threads of a process that has many: at once, without the files of each. `None` for few, and where the
/// kernel does not let us, or says something else than /proc of each of the first few: one that runs on may be in another
/// call by then.
pub(super) fn glance_at(task: &Task, pid: i32, threads: usize) -> Option<BTreeMap<i32, Glance>> {
    const COMPARED: usize = 4;
    if threads <= thread::MANY {
        return None;
    }
    let all = thread_calls::of_threads(pid);
    let all = all.inspect_err(|e| tracing::debug!("threads of {pid} are looked at one by one: {e}")).ok()?;
    let is_understood = |(tid, glance): (&i32, &Glance)| {
        let Ok(tid) = pid_of(*tid) else { return false };
        let has_children = task.children(tid).map(|children| !children.is_empty());
        task.thread(tid).syscall().is_ok_and(|call| call == glance.call)
            && has_children.is_ok_and(|any| any == glance.has_children)
    };
    all.iter().take(COMPARED).any(is_understood).then_some(all)
}

/// The call that a thread is in. In vfork it could not be stopped, but most
/// children call execve at once: it is waited for them as long as for a thread
/// to stop.
pub(super) fn call_but_vfork(task: &Task, pid: i32, tid: i32, limit: Duration) -> Result<Option<Syscall>> {
    let begun = Instant::now();
    let mut nap = Duration::from_micros(20);
    loop {
        let call = task.thread(pid_of(tid)?).syscall().ok();
        if !call.is_some_and(|call| is_vfork(tid, call)) || is_kernels(task, tid) {
            return Ok(call);
        }
        if begun.elapsed() > limit {
            let child = task.children(pid_of(tid)?).unwrap_or_default();
            let child = child.last().map_or_else(|| "its child".into(), |child| format!("process {child}"));
            let reason =
                format!("its thread {tid} is in vfork: nothing can stop it until {child} has called execve or ended");
            let remedy = "try again then; a program whose child runs on for long should use fork";
            return Err(Error::unsupported(Object::Process(pid), reason, remedy));
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_millis(2));
    }
}

/// Whether a call returns only when its child no longer needs the memory
/// (`CLONE_VFORK`).
pub(super) fn is_vfork(tid: i32, call: Syscall) -> bool {
    const VFORK: u64 = libc::CLONE_VFORK as u64;
    let flags_of = |at: u64| {
        let mut flags = [0; 8];
        cryonaut_puppet::memory::read(tid, at, &mut flags).map_or(0, |()| u64::from_le_bytes(flags))
    };
    match call {
        Syscall::In { number: libc::SYS_vfork, .. } => true,
        Syscall::In { number: libc::SYS_clone, args, .. } => args[0] & VFORK != 0,
        Syscall::In { number: libc::SYS_clone3, args, .. } => flags_of(args[0]) & VFORK != 0,
        _ => false,
    }
}

/// Whether a thread's call tells that it is one of the program's: those of the
/// kernel have no stack of theirs.
pub(super) fn is_programs(call: Option<Syscall>) -> bool {
    matches!(call, Some(Syscall::In { sp, .. }) if sp != 0)
}

/// Whether a thread was made by the kernel to work for the process (io_uring's workers). It has no state of its own,
/// would never stop for us, and is made again when it is needed.
pub(super) fn is_kernels(task: &Task, tid: i32) -> bool {
    /// PF_IO_WORKER and PF_USER_WORKER (linux/sched.h).
    const WORKER: u32 = 0x10 | 0x4000;
    pid_of(tid).is_ok_and(|tid| task.thread(tid).stat().is_ok_and(|stat| stat.flags & WORKER != 0))
}
