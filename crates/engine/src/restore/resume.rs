//! The last steps: what each thread has to do itself, then registers, then
//! letting go.

use super::{Nursery, births, descriptors};
use crate::arch;
use crate::attributes::{credentials, extras, restart, seccomp, signals, task, thread, timers};
use crate::plan::{Plan, ProcessPlan};
use crate::{Error, Object, RestoreOptions, Result};
use cryonaut_image::records::{CoreEntry, SignalQueueEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::{Perms, Vma};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Context, Hand, memory, stops, trace};
use std::collections::HashMap;

/// Lets the whole tree run.
pub fn resume_all(mut nursery: Nursery, plan: &Plan, service: &Service, options: &RestoreOptions) -> Result<()> {
    let have = Task::current()?.status()?.caps.bounding;
    let living: Vec<&ProcessPlan> = plan.processes.values().filter(|p| !p.is_zombie()).collect();
    for process in &living {
        let hand = nursery.hand(process.pid())?;
        descriptors::withdraw(hand, service)?;
        threads_of(hand, process, plan, have)?;
    }
    // From here on nothing is left to fail but ptrace itself.
    for process in &living {
        let hand = nursery.hand(process.pid())?;
        let results = reenter_calls(hand, process, plan)?;
        strip(hand)?;
        set_state(process, plan, &results)?;
    }
    for process in &living {
        let stop = process.job_stop().or(options.leave_stopped.then_some(libc::SIGSTOP));
        if let Some(signal) = stop {
            stops::send(process.pid(), signal)?;
        }
    }
    for process in &living {
        nursery.hands.remove(&process.pid());
        for (tid, _) in cores(process) {
            trace::detach(tid)?;
        }
    }
    Ok(())
}

/// Everything that each thread does itself, the leader last: the actions and
/// timers of the process are with it.
fn threads_of(hand: &mut Hand, process: &ProcessPlan, plan: &Plan, have: u64) -> Result<()> {
    let pid = process.pid();
    for (tid, core) in &process.threads {
        let context = Context::read(*tid)?;
        let mut b = Batch::new();
        thread::build(&mut b, core);
        hand.run_in_thread(*tid, &context, &mut b)?;
        for mut b in signals::build_queue(pid, *tid, own_signals(core))? {
            hand.run_in_thread(*tid, &context, &mut b)?;
        }
        schedule(*tid, core, plan)?;
        let mut last = last_batch(core, process, plan, have)?;
        suspend_seccomp(*tid, core)?;
        hand.run_in_thread(*tid, &context, &mut last)?;
    }
    leader(hand, process, plan, have)
}

fn leader(hand: &mut Hand, process: &ProcessPlan, plan: &Plan, have: u64) -> Result<()> {
    let (pid, core) = (process.pid(), &process.core);
    let tc =
        core.tc.as_ref().ok_or_else(|| Error::bad_image(format!("core-{pid}.img"), "it is not that of a process"))?;
    let mut b = Batch::new();
    signals::build_actions(pid, &mut b, &tc.sigactions)?;
    thread::build(&mut b, core);
    hand.run(&mut b)?;
    births::forget_sigchld_in(hand)?;
    for mut b in signals::build_queue(pid, 0, tc.signals_s.as_ref())? {
        hand.run(&mut b)?;
    }
    for mut b in signals::build_queue(pid, pid, own_signals(core))? {
        hand.run(&mut b)?;
    }
    let mut b = Batch::new();
    if let Some(all) = &tc.timers {
        timers::start(&mut b, all);
    }
    hand.run(&mut b)?;
    schedule(pid, core, plan)?;
    let mut last = last_batch(core, process, plan, have)?;
    suspend_seccomp(pid, core)?;
    Ok(hand.run(&mut last)?)
}

/// Signals that wait for this thread alone.
fn own_signals(core: &CoreEntry) -> Option<&SignalQueueEntry> {
    core.thread_core.as_ref()?.signals_p.as_ref()
}

fn schedule(tid: i32, core: &CoreEntry, plan: &Plan) -> Result<()> {
    if let Some(t) = &core.thread_core {
        thread::build_scheduling(tid, t)?;
    }
    plan.extras.get(&tid).map_or(Ok(()), |extra| extras::build(tid, extra))
}

/// Credentials, what they reset, and seccomp: after this the thread may be
/// unable to do anything.
fn last_batch(core: &CoreEntry, process: &ProcessPlan, plan: &Plan, have: u64) -> Result<Batch> {
    let mut b = Batch::new();
    let Some(t) = &core.thread_core else {
        return Ok(b);
    };
    if let Some(creds) = &t.creds {
        credentials::build(&mut b, creds, have);
    }
    task::build_after_credentials(&mut b, process.mm.as_ref(), t.pdeath_sig);
    if let Some(mode) = t.seccomp_mode.filter(|m| *m != 0) {
        seccomp::build(&mut b, &plan.seccomp, mode, t.seccomp_filter)?;
    }
    Ok(b)
}

/// A thread's filters must not judge the calls that are still made in it.
fn suspend_seccomp(tid: i32, core: &CoreEntry) -> Result<()> {
    let has = core.thread_core.as_ref().and_then(|t| t.seccomp_mode).is_some_and(|m| m != 0);
    if has {
        trace::set_options(tid, stops::BUILD | stops::SUSPEND_SECCOMP)?;
    }
    Ok(())
}

/// Calls that continue through the kernel's restart block are entered again.
/// Returns what the result register of each such thread is to hold.
fn reenter_calls(hand: &Hand, process: &ProcessPlan, plan: &Plan) -> Result<HashMap<i32, u64>> {
    let mut results = HashMap::new();
    for (tid, core) in cores(process) {
        if let Some(restart) = plan.extras.get(&tid).and_then(|e| e.restart) {
            results.insert(tid, restart::reenter(hand, tid, core, restart)?);
        }
    }
    Ok(results)
}

fn cores(process: &ProcessPlan) -> impl Iterator<Item = (i32, &CoreEntry)> {
    std::iter::once((process.pid(), &process.core)).chain(process.threads.iter().map(|(t, c)| (*t, c)))
}

/// Removes the scratch mapping, through a system call instruction of the
/// process's own text.
fn strip(hand: &mut Hand) -> Result<()> {
    let pid = hand.pid();
    let task = Task::open(crate::freeze::pid_of(pid)?)?;
    let scratch = hand.scratch();
    let maps = task.maps()?;
    let outside = maps.iter().filter(|v| v.perms.contains(Perms::EXEC) && !scratch.contains(&v.start));
    let instruction = outside.rev().find_map(|v| find_syscall(pid, v)).ok_or_else(|| {
        Error::unsupported(Object::Process(pid), "no executable mapping of it contains a system call instruction", "")
    })?;
    let len = scratch.end - scratch.start;
    let got = hand.call_bare(instruction, libc::SYS_munmap, [scratch.start, len, 0, 0, 0, 0])?;
    if got != 0 {
        let errno = rustix::io::Errno::from_raw_os_error(-got as i32);
        return Err(Error::kernel(Object::Process(pid), "unmap the working memory", errno));
    }
    Ok(())
}

fn find_syscall(pid: i32, vma: &Vma) -> Option<u64> {
    let mut text = vec![0; (vma.end - vma.start).min(1 << 16) as usize];
    memory::read(pid, vma.start, &mut text).ok()?;
    text.windows(2).position(|w| w == [0x0f, 0x05]).map(|at| vma.start + at as u64)
}

/// Extended state, signal mask and registers of every thread.
fn set_state(process: &ProcessPlan, plan: &Plan, results: &HashMap<i32, u64>) -> Result<()> {
    for (tid, core) in cores(process) {
        let info = arch::info_of(tid, core)?;
        let mut regs = arch::registers(tid, info)?;
        if let Some(interruption) = plan.extras.get(&tid).and_then(|e| e.interruption) {
            arch::unsettle_call(&mut regs, interruption);
        }
        if let Some(result) = results.get(&tid) {
            regs.rax = *result;
        }
        let area = arch::extended_state(tid, info, &trace::xstate(tid)?)?;
        let mask = core.thread_core.as_ref().and_then(|t| t.blk_sigset);
        let mask = mask.or(core.tc.as_ref().map(|tc| tc.blk_sigset)).unwrap_or(0);
        trace::set_xstate(tid, &area)?;
        trace::set_sigmask(tid, mask)?;
        trace::set_registers(tid, &regs)?;
    }
    Ok(())
}
