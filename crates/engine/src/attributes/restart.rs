//! Calls with a relative time limit that the kernel continues through its
//! restart block, which no interface shows and no system call sets.
//!
//! Before a thread is stopped, the time that it has slept is taken from its
//! scheduler clock: the moment it last left a processor, against the clock of
//! that same processor. Of a call that had been continued once already, that
//! moment is the last continuation's: there the kernel is asked for its restart
//! block by a program of its own, which takes some milliseconds. At restore the
//! thread enters the call again with the time that was left and is interrupted
//! in it: the kernel then has a restart block like the one that was lost.

use super::extras::Restart;
use crate::Result;
use crate::freeze::{Thread, pid_of};
use cryonaut_image::records::CoreEntry;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Syscall;
use cryonaut_kernel::sys::restart_block::{self, HIGHEST_CLOCK, Kind, RestartBlock};
use cryonaut_puppet::{Hand, arch, memory};
use rustix::thread::CpuSet;
use std::cell::RefCell;
use std::collections::BTreeMap;

const FUTEX_WAIT: u64 = 0;
const FUTEX_COMMAND: u64 = 0x7f;
const NANOS: u64 = 1_000_000_000;
/// A call shorter than this is not worth the time that it takes to ask the kernel.
const SHORT_NS: u64 = 15_000_000;

/// How long a call with these arguments may sleep, counted from its start; in
/// nanoseconds. `None` if it has no limit, or none that is relative.
fn limit(tid: i32, number: i64, args: &[u64; 6]) -> Option<u64> {
    let timespec = |at: u64| {
        let mut bytes = [0; 16];
        Some(at).filter(|at| *at != 0).and_then(|at| memory::read(tid, at, &mut bytes).ok())?;
        let word = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap_or_default());
        word(0).checked_mul(NANOS)?.checked_add(word(8))
    };
    match number {
        libc::SYS_nanosleep => timespec(args[0]),
        libc::SYS_clock_nanosleep if args[1] == 0 => timespec(args[2]),
        libc::SYS_poll => u64::try_from(args[2] as i32).ok().map(|ms| ms * 1_000_000),
        libc::SYS_futex if args[1] & FUTEX_COMMAND == FUTEX_WAIT => timespec(args[3]),
        _ => None,
    }
}

/// The call that a thread, not stopped yet, sleeps in (`call`), if it is one of
/// those, and what is left of its time.
///
/// A call that the kernel has already started again counts from then, unless
/// [`look_again`] finds out more.
pub fn asleep(process: &Task, tid: i32, call: Option<Syscall>) -> Option<Restart> {
    let Some(Syscall::In { number, args, sp, .. }) = call else {
        return None;
    };
    if sp == 0 {
        // A worker that the kernel has made while the process was in this call.
        return None;
    }
    let task = process.thread(pid_of(tid).ok()?);
    let number = if number == libc::SYS_restart_syscall { call_behind(&task, &args)? } else { number };
    if !continues(number) {
        return None;
    }
    let remaining_ns = limit(tid, number, &args).and_then(|limit| {
        let left_at = exec_start_ns(&task)?;
        let now = clock_of(task.stat().ok()?.processor as usize)?;
        Some(limit.saturating_sub(now.saturating_sub(left_at)))
    });
    Some(Restart { number, remaining_ns })
}

/// Whether it matters when exactly a thread is found in this call.
pub fn is_limited(tid: i32, call: Syscall) -> bool {
    let Syscall::In { number, args, .. } = call else { return false };
    number == libc::SYS_restart_syscall || limit(tid, number, &args).is_some()
}

/// The call in which a thread was stopped, if it is one of those and had not begun
/// when [`asleep`] looked: all its time is left.
pub fn just_begun(tid: i32, regs: &arch::Registers) -> Option<Restart> {
    let (number, args) = arch::registers_of_call(regs);
    let begun = arch::has_restart_block(regs) && continues(number);
    begun.then(|| Restart { number, remaining_ns: limit(tid, number, &args) })
}

/// Whether the kernel may continue a call through its restart block.
fn continues(number: i64) -> bool {
    matches!(number, libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_poll | libc::SYS_futex)
}

/// Corrects what is known of the threads of a process that were stopped in a call
/// which had been started again before. Where the kernel does not let us look, such
/// a call may last longer than its limit by what had passed before.
pub fn look_again(pid: i32, threads: &mut [Thread]) {
    let worth_it = |t: &Thread| {
        let (_, args) = arch::registers_of_call(&t.context.regs);
        t.asleep.is_none_or(|call| limit(t.tid, call.number, &args).is_some_and(|limit| limit > SHORT_NS))
    };
    let continued = |t: &&mut Thread| {
        let (number, _) = arch::registers_of_call(&t.context.regs);
        arch::has_restart_block(&t.context.regs) && number == libc::SYS_restart_syscall && worth_it(t)
    };
    let mut blocks = None;
    for thread in threads.iter_mut().filter(continued) {
        let blocks = blocks.get_or_insert_with(|| restart_block::of_threads(pid).unwrap_or_default());
        let Some(block) = blocks.get(&thread.tid) else { continue };
        let (_, args) = arch::registers_of_call(&thread.context.regs);
        thread.asleep = Some(continued_by(thread.tid, block, &args, thread.asleep));
    }
}

fn continued_by(tid: i32, block: &RestartBlock, args: &[u64; 6], known: Option<Restart>) -> Restart {
    let kind = block.kind(args);
    let number = match kind {
        Kind::Poll => libc::SYS_poll,
        Kind::Futex => libc::SYS_futex,
        Kind::Sleep => sleep_with(args),
    };
    let estimated = known.filter(|known| known.number == number).and_then(|known| known.remaining_ns);
    let limit = limit(tid, number, args);
    let exact =
        block.end(kind).filter(|_| limit.is_some()).and_then(|(clock, end)| Some(end.saturating_sub(now(clock)?)));
    Restart { number, remaining_ns: exact.or(estimated).or(limit) }
}

/// What a clock says that all processes see alike.
fn now(clock: i32) -> Option<u64> {
    let clock = match clock {
        libc::CLOCK_MONOTONIC => rustix::time::ClockId::Monotonic,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => rustix::time::ClockId::Boottime,
        _ => return None,
    };
    let time = rustix::time::clock_gettime(clock);
    Some(time.tv_sec as u64 * NANOS + time.tv_nsec as u64)
}

/// Which call a `restart_syscall` continues: the kernel function that it
/// sleeps in tells, but for sleeps, of which some kernels tell nothing (their
/// functions count as the scheduler's). Its arguments are still in the registers.
fn call_behind(task: &Task, args: &[u64; 6]) -> Option<i64> {
    let place = task.wchan().ok()??;
    if place.contains("poll") {
        Some(libc::SYS_poll)
    } else if place.contains("futex") {
        Some(libc::SYS_futex)
    } else {
        Some(sleep_with(args))
    }
}

/// The first argument of nanosleep is an address.
fn sleep_with(args: &[u64; 6]) -> i64 {
    if args[0] <= HIGHEST_CLOCK { libc::SYS_clock_nanosleep } else { libc::SYS_nanosleep }
}

/// For how long it holds how far a processor's clock is from ours.
const FRESH_NS: u64 = 100_000_000;

/// When a thread last began to be accounted on its processor, by that
/// processor's clock (`se.exec_start` of /proc/TID/sched, in milliseconds).
fn exec_start_ns(task: &Task) -> Option<u64> {
    let text = String::from_utf8(task.read("sched").ok()?).ok()?;
    let value = text.lines().find(|l| l.starts_with("se.exec_start"))?.split(':').nth(1)?.trim();
    let (ms, fraction) = value.split_once('.')?;
    Some(ms.parse::<u64>().ok()? * 1_000_000 + format!("{fraction:0<6}").get(..6)?.parse::<u64>().ok()?)
}

/// The clock of one processor. It goes as fast as CLOCK_MONOTONIC, as far as that is not being corrected (adjtimex(2): 500
/// us in a second at most), so that what is between them holds for a while: to go there may take milliseconds.
fn clock_of(cpu: usize) -> Option<u64> {
    thread_local! {
        /// By processor: when it was seen, and how far its clock was from CLOCK_MONOTONIC.
        static SEEN: RefCell<BTreeMap<usize, (u64, i64)>> = const { RefCell::new(BTreeMap::new()) };
    }
    let monotonic = || now(libc::CLOCK_MONOTONIC);
    let seen = SEEN.with_borrow(|seen| seen.get(&cpu).copied());
    if let Some((at, ahead)) = seen
        && let Some(now) = monotonic().filter(|now| now.saturating_sub(at) < FRESH_NS)
    {
        return now.checked_add_signed(ahead);
    }
    let told = look_at_clock_of(cpu)?;
    let at = monotonic()?;
    SEEN.with_borrow_mut(|seen| seen.insert(cpu, (at, told.wrapping_sub(at).cast_signed())));
    Some(told)
}

/// Our own start of accounting, just after we came to run there.
fn look_at_clock_of(cpu: usize) -> Option<u64> {
    let own = rustix::thread::sched_getaffinity(None).ok()?;
    let mut one = CpuSet::new();
    one.set(cpu);
    rustix::thread::sched_setaffinity(None, &one).ok()?;
    std::thread::sleep(std::time::Duration::from_micros(1));
    let me = Task::open(rustix::thread::gettid()).ok();
    let now = me.and_then(|t| exec_start_ns(&t));
    let _ = rustix::thread::sched_setaffinity(None, &own);
    now
}

/// Makes a held thread enter its call again with what is left of its time, and
/// interrupts it there. Returns what its result register is to hold.
pub fn reenter(hand: &Hand, tid: i32, core: &CoreEntry, restart: Restart) -> Result<u64> {
    let info = crate::arch::info_of(tid, core)?;
    let (_, mut args) = arch::registers_of_call(&crate::arch::registers(tid, info)?);
    let number = restart.number;
    if let Some(ns) = restart.remaining_ns {
        let at = hand.thread_room();
        let time = [ns / NANOS, ns % NANOS];
        hand.poke(at, &time.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
        match number {
            libc::SYS_nanosleep => args[0] = at,
            libc::SYS_clock_nanosleep => args[2] = at,
            libc::SYS_poll => args[2] = ns.div_ceil(1_000_000),
            libc::SYS_futex => args[3] = at,
            _ => {}
        }
    }
    Ok(hand.enter_call(tid, number, args)? as u64)
}
