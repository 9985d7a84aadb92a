//! Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).

use super::cpu_timers::Owners;
use super::unanswered;
use crate::namespaces::pid::Numbers;
use crate::{Error, Object, Result};
use cryonaut_image::records::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};
use cryonaut_kernel::proc::timers::{Notify, Timer};
use cryonaut_puppet::{Arg, Batch, Call, Context, Data, Hand, Job};

/// SIGEV_* as `it_sigev_notify` has them.
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD: u32 = 2;
const SIGEV_THREAD_ID: u32 = 4;
/// Lets timer_create take the id that its argument holds (Linux 6.16).
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

/// The question for all timers of a process.
#[derive(Debug)]
pub struct Ask {
    interval: [Data; 3],
    posix: Vec<(Timer, Data, Call)>,
}

impl Ask {
    /// Whether the process has POSIX timers.
    pub fn any(&self) -> bool {
        !self.posix.is_empty()
    }

    /// Adds it to a batch for the process, which has these POSIX timers.
    pub fn new(b: &mut Batch, timers: Vec<Timer>) -> Self {
        let interval = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].map(|which| {
            let room = b.space(32);
            b.call(libc::SYS_getitimer, [Arg::Val(which as u64), room.into()]);
            room
        });
        let posix = timers
            .into_iter()
            .map(|timer| {
                let room = b.space(32);
                b.call(libc::SYS_timer_gettime, [timer.id.into(), room.into()]);
                let overrun = b.call(libc::SYS_timer_getoverrun, [timer.id.into()]);
                (timer, room, overrun)
            })
            .collect();
        Ask { interval, posix }
    }

    /// The record.
    pub fn record(&self, pid: i32, answers: &Batch) -> Result<TaskTimersEntry> {
        let [real, virt, prof] = self.interval.map(|room| ItimerEntry {
            isec: answers.read_u64(room),
            iusec: answers.read_u64(room.at(8)),
            vsec: answers.read_u64(room.at(16)),
            vusec: answers.read_u64(room.at(24)),
        });
        let mut posix = Vec::new();
        for (timer, room, overrun) in &self.posix {
            posix.push(PosixTimerEntry {
                it_id: timer.id as u32,
                clock_id: timer.clock as u32,
                si_signo: timer.signal as u32,
                it_sigev_notify: match (timer.notify, timer.thread) {
                    (Notify::Signal, true) => SIGEV_THREAD_ID,
                    (Notify::Signal, false) => SIGEV_SIGNAL,
                    (Notify::None, _) => SIGEV_NONE,
                    (Notify::Thread, _) => SIGEV_THREAD,
                },
                sival_ptr: timer.value,
                overrun: answers.result(*overrun).map_err(unanswered(pid, "POSIX timers"))? as u32,
                isec: answers.read_u64(*room),
                insec: answers.read_u64(room.at(8)),
                vsec: answers.read_u64(room.at(16)),
                vnsec: answers.read_u64(room.at(24)),
                notify_thread_id: timer.thread.then_some(timer.target),
            });
        }
        Ok(TaskTimersEntry { real, virt, prof, posix })
    }
}

/// Makes the POSIX timers of a record, not yet running. All threads exist.
/// Those on a thread's own clock are made by that thread.
pub fn create(hand: &mut Hand, timers: &TaskTimersEntry, owners: Option<&Owners>, numbers: &Numbers) -> Result<()> {
    if timers.posix.is_empty() {
        return Ok(());
    }
    let chosen = set_restore_ids(hand, true)?;
    let mut sorted: Vec<&PosixTimerEntry> = timers.posix.iter().collect();
    sorted.sort_by_key(|t| t.it_id);
    for timer in sorted {
        let owner = owners.and_then(|owners| owners.get(&timer.it_id)).copied();
        create_one(hand, timer, owner, numbers, chosen)?;
    }
    set_restore_ids(hand, false)?;
    Ok(())
}

fn set_restore_ids(hand: &mut Hand, on: bool) -> Result<bool> {
    let mut b = Batch::new();
    let how = b.attempt(
        libc::SYS_prctl,
        [PR_TIMER_CREATE_RESTORE_IDS.into(), i32::from(on).into(), 0.into(), 0.into(), 0.into()],
    );
    hand.run(&mut b)?;
    Ok(b.result(how).is_ok())
}

/// Older kernels hand out ids in ascending order: those before the wanted one
/// are made and deleted.
const ID_ATTEMPTS: u32 = 1 << 16;

fn create_one(
    hand: &mut Hand,
    timer: &PosixTimerEntry,
    owner: Option<i32>,
    numbers: &Numbers,
    chosen: bool,
) -> Result<()> {
    let told = timer.notify_thread_id.map_or(0, |tid| numbers.innermost(tid));
    for _ in 0..ID_ATTEMPTS {
        let mut b = Batch::new();
        // struct sigevent: value, signo, notify, tid.
        let mut event = [0u8; 64];
        event[..8].copy_from_slice(&timer.sival_ptr.to_le_bytes());
        event[8..12].copy_from_slice(&timer.si_signo.to_le_bytes());
        event[12..16].copy_from_slice(&timer.it_sigev_notify.to_le_bytes());
        event[16..20].copy_from_slice(&told.to_le_bytes());
        let event = b.bytes(&event);
        let id = b.bytes(&timer.it_id.to_le_bytes());
        b.read_back(id);
        b.call(libc::SYS_timer_create, [(timer.clock_id as i32).into(), event.into(), id.into()]);
        match owner {
            Some(tid) => hand.run_in_threads(&mut [Job { tid, context: &Context::read(tid)?, batch: &mut b }])?,
            None => hand.run(&mut b)?,
        }
        let got = b.read_u32(id);
        if got == timer.it_id {
            return Ok(());
        }
        let mut b = Batch::new();
        b.call(libc::SYS_timer_delete, [got.into()]);
        hand.run(&mut b)?;
        if chosen || got > timer.it_id {
            break;
        }
    }
    Err(Error::unsupported(Object::Process(hand.pid()), format!("POSIX timer {} cannot get its id", timer.it_id), ""))
}

/// What a POSIX timer is that its process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not run.
    New,
    /// It runs, as it is to.
    Runs,
    /// It has run, and is now to be what the record says.
    Expired,
}

/// Adds to a batch what starts all timers, of which some run already: the last
/// thing before a process goes on.
pub fn start(b: &mut Batch, timers: &TaskTimersEntry, state: impl Fn(&PosixTimerEntry) -> State) {
    let interval =
        [(libc::ITIMER_REAL, &timers.real), (libc::ITIMER_VIRTUAL, &timers.virt), (libc::ITIMER_PROF, &timers.prof)];
    for (which, t) in interval {
        if t.vsec | t.vusec | t.isec | t.iusec == 0 {
            continue;
        }
        // An interval timer that has expired stands still at zero until its
        // SIGALRM is taken (kernel/signal.c, dequeue_signal). Zero would disarm
        // it; the shortest time brings it to where it stood, and its signal
        // merges with the one that waits.
        let micros = if t.vsec | t.vusec == 0 { 1 } else { t.vusec };
        let value = b.bytes(&words([t.isec, t.iusec, t.vsec, micros]));
        b.call(libc::SYS_setitimer, [Arg::Val(which as u64), value.into(), Arg::Val(0)]);
    }
    for t in &timers.posix {
        match state(t) {
            State::Runs => continue,
            State::New if t.vsec | t.vnsec | t.isec | t.insec == 0 => continue,
            State::New | State::Expired => {}
        }
        let value = b.bytes(&words([t.isec, t.insec, t.vsec, t.vnsec]));
        b.call(libc::SYS_timer_settime, [t.it_id.into(), Arg::Val(0), value.into(), Arg::Val(0)]);
    }
}

pub(super) fn words(words: [u64; 4]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
