//! What only a tracer is told of a thread, by the shortest of visits: seize, read, let go.
//!
//! A stop ends or restarts the call in which a thread is blocked, as a stop signal and SIGCONT would. Where that could
//! be noticed, in calls that the kernel does not begin again and in those that have counted down a time, the thread is
//! left alone.

use std::time::{Duration, Instant};

use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::stat::State;
use cryonaut_kernel::proc::values::Syscall;
use cryonaut_kernel::sys::mem;
use cryonaut_kernel::sys::ptrace::{self, Options};
use cryonaut_kernel::sys::signal::SigInfo;
use cryonaut_kernel::sys::wait::{PtraceEvent, WaitStatus, Who, try_wait};
use linux_raw_sys::general as nr;
use rustix::io::Errno;
use rustix::process::Pid;

use super::memory::Digest;
use super::{Field, Object, Taking};

/// Calls that the kernel continues under the number of restart_syscall, and that number.
pub(super) const MAY_BE_RESTARTED: [i64; 5] = [
    nr::__NR_nanosleep as i64,
    nr::__NR_clock_nanosleep as i64,
    nr::__NR_poll as i64,
    nr::__NR_futex as i64,
    nr::__NR_restart_syscall as i64,
];

/// The field that says whether a thread was visited, and its value when it was.
pub(super) const FIELD: &str = "visit";
pub(super) const MADE: &str = "made";

/// Fields by which a visit tells, or their beginnings.
const TOLD: [&str; 8] =
    [FIELD, "registers", "xstate", "thread_area.", "signals.", "seccomp.", "rseq", "syscall_user_dispatch"];

/// Whether a field is told by a visit alone.
pub(super) fn tells(field: &Field) -> bool {
    TOLD.iter().any(|name| field.name.starts_with(name))
}

/// Calls that a stop ends with EINTR (signal(7)).
const ENDED_BY_A_STOP: [i64; 8] = [
    nr::__NR_epoll_wait as i64,
    nr::__NR_epoll_pwait as i64,
    nr::__NR_epoll_pwait2 as i64,
    nr::__NR_semop as i64,
    nr::__NR_semtimedop as i64,
    nr::__NR_rt_sigtimedwait as i64,
    nr::__NR_io_getevents as i64,
    nr::__NR_io_pgetevents as i64,
];

/// Naps up to this long may be begun again without anybody noticing.
const NAP_NS: u64 = 100_000_000;

/// How long a thread may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Reads what a tracer may, if the thread can be visited.
pub(super) fn take(
    taking: &mut Taking,
    object: &Object,
    tid: Pid,
    task: &Task,
    call: Option<Syscall>,
    queue_told: &mut bool,
) {
    let status = task.status();
    let traced = status.as_ref().map_or(true, |status| status.tracer_pid != 0);
    // A sleep that nothing but its end interrupts (of a parent in vfork, say) would leave us with a thread half held.
    let deep = task.stat().map_or(true, |stat| stat.state == State::DiskSleep);
    let zombie = status.as_ref().map_or(true, |status| status.umask.is_none());
    if traced || zombie || deep || call.is_some_and(|call| would_notice(tid, call)) {
        taking.put(object, FIELD, "none");
        return;
    }
    if let Err(errno) = seized(tid) {
        release(tid);
        return taking.put_result::<&str>(object, FIELD, Err(errno));
    }
    taking.put(object, FIELD, MADE);
    // Those of a thread at work change from instruction to instruction.
    match call {
        None | Some(Syscall::Running) => {}
        Some(call) if has_gone_on(tid, call) => taking.put(object, "call", "running"),
        Some(_) => registers(taking, object, tid),
    }
    for entry in 12..15 {
        let entry_of = ptrace::get_thread_area(tid, entry).map(|desc| format!("{desc:x?}"));
        taking.put_result(object, format!("thread_area.{entry}"), entry_of);
    }
    signals(taking, object, tid, queue_told);
    if let Ok(status) = status
        && status.seccomp == cryonaut_kernel::proc::status::Seccomp::Filter
    {
        filters(taking, object, tid);
    }
    let rseq = ptrace::rseq(tid);
    if let Some(places) = taking.threads.last_mut() {
        places.rseq = rseq.ok().map(|rseq| rseq.pointer);
        if places.stack_pointer.is_none() {
            places.stack_pointer = ptrace::get_regs(tid).ok().map(|regs| regs.rsp);
        }
    }
    taking.put_result(object, "rseq", rseq.map(|rseq| format!("{rseq:x?}")));
    let dispatch = ptrace::syscall_user_dispatch(tid).map(|config| format!("{config:x?}"));
    taking.put_result(object, "syscall_user_dispatch", dispatch);
    release(tid);
}

/// Whether a thread is not in the call any more in which it was seen.
fn has_gone_on(tid: Pid, call: Syscall) -> bool {
    let (Syscall::In { number, .. }, Ok(regs)) = (call, ptrace::get_regs(tid)) else { return false };
    let now = regs.orig_rax as i64;
    let continued = [number, now].iter().all(|call| MAY_BE_RESTARTED.contains(call));
    now != number && !continued
}

/// Lets a thread go, which must stand still for it.
fn release(tid: Pid) {
    let deadline = Instant::now() + STOP_LIMIT;
    let mut signal = 0;
    while ptrace::detach(tid, signal).is_err() && Instant::now() < deadline {
        // Both fail for one that has been killed meanwhile.
        let (_, Ok(Some((_, status)))) = (ptrace::interrupt(tid), try_wait(Who::One(tid))) else {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        };
        if status.is_end() {
            return;
        }
        signal = if let WaitStatus::SignalStop(signal) = status { signal } else { 0 };
    }
}

/// Whether the call that the thread is blocked in would tell it of a visit.
fn would_notice(tid: Pid, call: Syscall) -> bool {
    let Syscall::In { number, args, .. } = call else {
        return false;
    };
    let limit = match u32::try_from(number).unwrap_or(u32::MAX) {
        _ if ENDED_BY_A_STOP.contains(&number) => return true,
        nr::__NR_poll => return args[2] as i32 > 0,
        nr::__NR_select => args[4],
        nr::__NR_pselect6 => args[4],
        nr::__NR_ppoll => args[2],
        nr::__NR_futex => args[3],
        nr::__NR_nanosleep => args[0],
        nr::__NR_clock_nanosleep => args[2],
        _ => return false,
    };
    limit != 0 && timespec_ns(tid, limit).is_none_or(|ns| ns > NAP_NS)
}

fn timespec_ns(tid: Pid, address: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    mem::read(tid, address, &mut bytes).ok()?;
    let (seconds, nanoseconds) = bytes.split_at(8);
    let word = |half: &[u8]| Some(u64::from_ne_bytes(half.try_into().ok()?));
    word(seconds)?.checked_mul(1_000_000_000)?.checked_add(word(nanoseconds)?)
}

/// Seizes a thread and waits until it stands still.
fn seized(tid: Pid) -> Result<(), Errno> {
    ptrace::seize(tid, Options::empty())?;
    ptrace::interrupt(tid)?;
    let deadline = Instant::now() + STOP_LIMIT;
    while Instant::now() < deadline {
        match try_wait(Who::One(tid))? {
            Some((_, WaitStatus::Event(PtraceEvent::Stop) | WaitStatus::GroupStop(_))) => return Ok(()),
            Some((_, WaitStatus::SignalStop(signal))) => ptrace::cont(tid, signal)?,
            Some((_, status)) if status.is_end() => return Err(Errno::SRCH),
            Some(_) => ptrace::cont(tid, 0)?,
            None => std::thread::sleep(Duration::from_micros(20)),
        }
    }
    Err(Errno::TIMEDOUT)
}

fn registers(taking: &mut Taking, object: &Object, tid: Pid) {
    match ptrace::get_regs(tid) {
        Ok(regs) => {
            // How the kernel names a call that it begins again is not the thread's business.
            let call = regs.orig_rax as i64;
            let call = if MAY_BE_RESTARTED.contains(&call) { "restartable".to_owned() } else { call.to_string() };
            taking.put(object, "registers.orig_rax", call);
            for (name, value) in [
                ("rip", regs.rip),
                ("rsp", regs.rsp),
                ("rax", regs.rax),
                ("rbx", regs.rbx),
                ("rcx", regs.rcx),
                ("rdx", regs.rdx),
                ("rsi", regs.rsi),
                ("rdi", regs.rdi),
                ("rbp", regs.rbp),
                ("r8", regs.r8),
                ("r9", regs.r9),
                ("r10", regs.r10),
                ("r11", regs.r11),
                ("r12", regs.r12),
                ("r13", regs.r13),
                ("r14", regs.r14),
                ("r15", regs.r15),
                ("flags", regs.eflags),
                ("fs_base", regs.fs_base),
                ("gs_base", regs.gs_base),
                ("cs", regs.cs),
                ("ds", regs.ds),
                ("es", regs.es),
                ("fs", regs.fs),
                ("gs", regs.gs),
                ("ss", regs.ss),
            ] {
                taking.put(object, format!("registers.{name}"), format!("{value:#x}"));
            }
        }
        Err(errno) => taking.put_result::<&str>(object, "registers", Err(errno)),
    }
    match ptrace::get_xstate(tid) {
        Ok(area) => {
            taking.put(object, "xstate.size", area.len().to_string());
            // The legacy area in its parts, the header, and behind it one part for each 64 bytes.
            let parts = [("x87", 0..24), ("mxcsr", 24..32), ("st", 32..160), ("xmm", 160..416), ("header", 512..576)];
            for (name, range) in parts {
                taking.put(object, format!("xstate.{name}"), hex(&area[range]));
            }
            for (at, part) in area[576..].chunks(64).enumerate() {
                if part.iter().any(|byte| *byte != 0) {
                    taking.put(object, format!("xstate.at{:#x}", 576 + at * 64), hex(part));
                }
            }
        }
        Err(errno) => taking.put_result::<&str>(object, "xstate", Err(errno)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Longer queues are told by their digest.
const SHOWN: usize = 64;

fn signals(taking: &mut Taking, object: &Object, tid: Pid, queue_told: &mut bool) {
    taking.put_result(object, "signals.blocked", ptrace::get_sigmask(tid).map(|mask| format!("{mask:#x}")));
    let list = |infos: Vec<SigInfo>| {
        let one = |info: &SigInfo| hex(info.as_bytes()).trim_end_matches('0').to_owned();
        if infos.len() <= SHOWN {
            return infos.iter().map(one).collect::<Vec<_>>().join(" ");
        }
        let mut digest = Digest::default();
        infos.iter().for_each(|info| digest.add(info.as_bytes()));
        format!("{} signals, {digest}", infos.len())
    };
    taking.put_result(object, "signals.queued", ptrace::peek_siginfo(tid, false).map(list));
    if !*queue_told {
        // One queue for all threads: told once, since a large one takes its time.
        taking.put_result(object, "signals.queued_for_process", ptrace::peek_siginfo(tid, true).map(list));
        *queue_told = true;
    }
}

fn filters(taking: &mut Taking, object: &Object, tid: Pid) {
    for index in 0.. {
        match ptrace::seccomp_filter(tid, index) {
            Ok(program) => {
                let code: Vec<String> =
                    program.iter().map(|i| format!("{:x}.{:x}.{:x}.{:x}", i.code, i.jt, i.jf, i.k)).collect();
                taking.put(object, format!("seccomp.{index}"), code.join(" "));
                let flags = ptrace::seccomp_flags(tid, index as u64);
                taking.put_result(object, format!("seccomp.{index}.flags"), flags);
            }
            Err(Errno::NOENT) => return,
            Err(errno) => return taking.put_result::<&str>(object, format!("seccomp.{index}"), Err(errno)),
        }
    }
}
