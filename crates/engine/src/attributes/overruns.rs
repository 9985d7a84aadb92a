//! Signals of POSIX timers that wait, and the expirations that nobody has been told of yet: the kernel counts them in
//! the timer and tells the count only to who takes the signal (timer_getoverrun(2)). Kept beside the record of the
//! timers, in `cryonaut-timer-overruns.json`.
//!
//! Such a timer stands still until its signal is taken. It is brought back to where it stood by an absolute start in
//! the past: its own expiry queues the signal again, and the kernel counts the periods from there on, when the signal
//! is taken. Where its clock does not reach back so far (that of a new process's own time), the signal is sent by hand
//! with the count in it.

use super::cpu_timers::{OWN_CLOCK, Owners};
use super::signals;
use super::timers::State;
use crate::Result;
use crate::freeze::Process;
use cryonaut_image::records::{PosixTimerEntry, SiginfoEntry, SignalQueueEntry};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::sys::posix_timers;
use cryonaut_puppet::{Arg, Batch, Context, Hand, Job};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The file's name, short of what all such files have in theirs.
const NAME: &str = "timer-overruns";
const SECOND: i128 = 1_000_000_000;
/// Timers asked about at once.
const AT_ONCE: usize = 16;
/// How often a count is tried to be brought about: the next expiry may come in between.
const TRIES: u32 = 6;
/// How long a signal of a timer that has expired is waited for, in nanoseconds.
const PATIENCE: u64 = 20_000_000;

/// What a timer's signal that is in a queue is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// It waits for somebody; so many expirations came after it.
    Missed(u64),
    /// The timer has been set since: the kernel will throw it away when somebody would take it.
    Stale,
}

/// The timers of a process whose signals are in a queue, by their ids.
pub type Overruns = BTreeMap<u32, Waiting>;

/// All processes', by pid.
pub type AllOverruns = BTreeMap<i32, Overruns>;

/// Writes those of a tree, if there are any.
pub fn write(images: &DumpDir, all: &AllOverruns) -> Result<()> {
    if all.is_empty() { Ok(()) } else { Ok(images.write_json(NAME, all)?) }
}

/// Those of an image.
pub fn load(images: &ImageDir) -> Result<AllOverruns> {
    Ok(images.read_json(NAME)?.unwrap_or_default())
}

/// Looks which timers of a frozen process wait for somebody to take their signals; `shared` are those of the whole
/// process. Nothing is told of them where the kernel does not let itself be looked into.
pub fn read(process: &Process, timers: &[PosixTimerEntry], shared: &SignalQueueEntry) -> Result<Overruns> {
    let mut own: BTreeMap<i32, SignalQueueEntry> = BTreeMap::new();
    let mut candidates = Vec::new();
    for timer in timers {
        let queue = match timer.notify_thread_id {
            None => shared,
            // Nor of one that has ended: nobody will take what it was sent.
            Some(tid) if process.threads.iter().all(|thread| thread.tid != tid) => continue,
            Some(tid) => match own.entry(tid) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(new) => new.insert(signals::queued(tid, false)?),
            },
        };
        if queue.signals.iter().any(|entry| is_of(entry, timer)) {
            candidates.push(timer);
        }
    }
    if candidates.is_empty() {
        return Ok(Overruns::new());
    }
    let inside = match posix_timers::inside(process.speaker()) {
        Ok(inside) => inside,
        Err(e) => {
            let pid = process.pid;
            tracing::warn!("process {pid}: how often its POSIX timers have expired is not known, the kernel says {e}");
            return Ok(Overruns::new());
        }
    };
    let mut found = Overruns::new();
    for timer in candidates {
        let Some(inside) = inside.iter().find(|t| t.id as u32 == timer.it_id && t.queued) else { continue };
        if inside.stale {
            found.insert(timer.it_id, Waiting::Stale);
        } else if inside.stands || interval(timer) == 0 {
            found.insert(timer.it_id, Waiting::Missed(inside.overrun.try_into().unwrap_or(0)));
        }
    }
    Ok(found)
}

/// Whether a queued signal says that it is a timer's (siginfo_t: number, error, code; timer, overrun, value).
fn is_of(entry: &SiginfoEntry, timer: &PosixTimerEntry) -> bool {
    let word = |at: usize| entry.siginfo.get(at..at + 4).and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
    let value = entry.siginfo.get(24..32) == Some(&timer.sival_ptr.to_le_bytes());
    (word(0), word(8), word(16)) == (Some(timer.si_signo), Some(libc::SI_TIMER as u32), Some(timer.it_id)) && value
}

/// How a signal that was recorded comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comeback {
    /// It is sent as it is.
    Sent,
    /// It is sent with this count of expirations.
    Counted(i32),
    /// A timer's own expiry brings it, when the timer is set to this absolute time: interval and value, seconds and
    /// nanoseconds.
    Expires(u32, [u64; 4]),
    /// Nobody would get it anyway.
    Dropped,
}

/// How the signals of a process's timers come back.
#[derive(Debug, Default)]
pub struct Comebacks(Vec<(PosixTimerEntry, Waiting, Comeback)>);

impl Comebacks {
    /// Finds out for a process that has its timers, not yet running.
    pub fn new(
        hand: &mut Hand,
        timers: &[PosixTimerEntry],
        waiting: Option<&Overruns>,
        owners: Option<&Owners>,
    ) -> Result<Self> {
        let Some(waiting) = waiting else { return Ok(Self::default()) };
        let those: Vec<(&PosixTimerEntry, Waiting)> =
            timers.iter().filter_map(|t| Some((t, *waiting.get(&t.it_id)?))).collect();
        let mut all = Vec::with_capacity(those.len());
        for some in those.chunks(AT_ONCE) {
            let clocks: Vec<i32> = some.iter().map(|(t, _)| clock(hand.tid(), t, owners)).collect();
            for ((timer, waiting), now) in some.iter().zip(now(hand, &clocks)?) {
                all.push((**timer, *waiting, comeback(timer, *waiting, now)));
            }
        }
        Ok(Comebacks(all))
    }

    /// Those of the signals of a queue, that of a thread or (0) of the process. What a timer sends itself comes behind
    /// what was sent by hand in its name before.
    pub fn of_queue(&self, tid: i32, entries: &[SiginfoEntry]) -> Vec<Comeback> {
        let mut all = vec![Comeback::Sent; entries.len()];
        for (timer, _, comeback) in self.0.iter().filter(|(t, ..)| t.notify_thread_id.unwrap_or(0) == tid) {
            if let Some(at) = entries.iter().rposition(|entry| is_of(entry, timer)) {
                all[at] = *comeback;
            }
        }
        all
    }

    /// What the coming back of its signal has made of a timer.
    pub fn made(&self, timer: &PosixTimerEntry) -> State {
        match self.0.iter().find(|(t, ..)| t.it_id == timer.it_id) {
            Some((_, Waiting::Missed(_), Comeback::Expires(..))) => State::Runs,
            // To be set makes void what it has sent.
            Some((_, Waiting::Stale, Comeback::Expires(..))) => State::Expired,
            _ => State::New,
        }
    }
}

fn comeback(timer: &PosixTimerEntry, waiting: Waiting, now: Option<i128>) -> Comeback {
    let Waiting::Missed(missed) = waiting else {
        return now.map_or(Comeback::Dropped, |now| Comeback::Expires(timer.it_id, absolute(timer, now)));
    };
    let start = now.and_then(|now| match interval(timer) {
        0 => Some(now),
        period => past(now, timer, i128::from(missed) + 1).filter(|_| left(timer) <= period),
    });
    match start {
        Some(start) => Comeback::Expires(timer.it_id, absolute(timer, start)),
        None => Comeback::Counted(missed.try_into().unwrap_or(i32::MAX)),
    }
}

/// When a timer with what is left has expired so many times; `None` if its clock was not there yet.
fn past(now: i128, timer: &PosixTimerEntry, expirations: i128) -> Option<i128> {
    let start = now + left(timer) - interval(timer).checked_mul(expirations)?;
    Some(start).filter(|s| *s > 0 && *s <= now)
}

fn interval(timer: &PosixTimerEntry) -> i128 {
    i128::from(timer.isec) * SECOND + i128::from(timer.insec)
}

fn left(timer: &PosixTimerEntry) -> i128 {
    i128::from(timer.vsec) * SECOND + i128::from(timer.vnsec)
}

fn absolute(timer: &PosixTimerEntry, start: i128) -> [u64; 4] {
    [timer.isec, timer.insec, (start / SECOND) as u64, (start % SECOND) as u64]
}

/// The clock of a timer, as any thread of the process may ask for it.
fn clock(first: i32, timer: &PosixTimerEntry, owners: Option<&Owners>) -> i32 {
    // include/linux/posix-timers_types.h: the id inverted, above the kind of clock (2: as scheduled) and whether it is
    // that of a thread (4).
    match timer.clock_id as i32 {
        OWN_CLOCK => !owners.and_then(|o| o.get(&timer.it_id)).copied().unwrap_or(first) << 3 | 4 | 2,
        other => other,
    }
}

/// What clocks say to a process, in nanoseconds; `None` for one that it cannot ask.
fn now(hand: &mut Hand, clocks: &[i32]) -> Result<Vec<Option<i128>>> {
    let mut b = Batch::new();
    let mut rooms = Vec::with_capacity(clocks.len());
    for clock in clocks {
        let room = b.space(16);
        rooms.push((room, b.attempt(libc::SYS_clock_gettime, [(*clock).into(), room.into()])));
    }
    hand.run(&mut b)?;
    let told = |(room, call): &(cryonaut_puppet::Data, cryonaut_puppet::Call)| {
        b.result(*call).ok().map(|_| i128::from(b.read_u64(*room)) * SECOND + i128::from(b.read_u64(room.at(8))))
    };
    Ok(rooms.iter().map(told).collect())
}

/// Adds to a batch the absolute start of a timer.
pub fn expire(b: &mut Batch, id: u32, value: [u64; 4]) {
    let value = b.bytes(&super::timers::words(value));
    b.call(libc::SYS_timer_settime, [id.into(), libc::TIMER_ABSTIME.into(), value.into(), Arg::Val(0)]);
}

/// Lets running timers of which the program may still ask how often they had expired at the last signal
/// (timer_getoverrun(2)) say so again: each starts in the past, and its own process takes the signal. Before any signal
/// is queued, and before the timers start. Returns the timers that run now.
pub fn tell_again(
    hand: &mut Hand,
    timers: &[PosixTimerEntry],
    comebacks: &Comebacks,
    owners: Option<&Owners>,
) -> Result<Vec<u32>> {
    let mut running = Vec::new();
    for timer in timers.iter().filter(|t| t.overrun > 0 && interval(t) > 0 && comebacks.made(t) == State::New) {
        let signal = timer.si_signo as i32;
        let alive = left(timer) > 0 && left(timer) <= interval(timer) && timer.notify_thread_id != Some(0);
        // Nobody can wait for these two.
        if alive && ![libc::SIGKILL, libc::SIGSTOP].contains(&signal) && tell_one_again(hand, timer, owners)? {
            running.push(timer.it_id);
        }
    }
    Ok(running)
}

fn tell_one_again(hand: &mut Hand, timer: &PosixTimerEntry, owners: Option<&Owners>) -> Result<bool> {
    let clock = clock(hand.tid(), timer, owners);
    let mut early = 0;
    for _ in 0..TRIES {
        let expirations = i128::from(timer.overrun) + 1 - early;
        let Some(now) = now(hand, &[clock])?[0] else { return Ok(false) };
        let Some(start) = past(now, timer, expirations) else { return Ok(false) };
        let mut b = Batch::new();
        expire(&mut b, timer.it_id, absolute(timer, start));
        let set = b.bytes(&(1u64 << (timer.si_signo.clamp(1, 64) - 1)).to_le_bytes());
        let patience = b.bytes(&[0, PATIENCE].map(u64::to_le_bytes).concat());
        b.attempt(libc::SYS_rt_sigtimedwait, [set.into(), Arg::Val(0), patience.into(), Arg::Val(8)]);
        let told = b.call(libc::SYS_timer_getoverrun, [timer.it_id.into()]);
        match timer.notify_thread_id.filter(|tid| *tid != hand.tid()) {
            Some(tid) => {
                // One that has ended gets nothing told.
                let Ok(context) = Context::of_built(tid) else { return Ok(false) };
                hand.run_in_threads(&mut [Job { tid, context: &context, batch: &mut b }])?;
            }
            None => hand.run(&mut b)?,
        }
        match b.result(told) {
            Ok(told) if told == u64::from(timer.overrun) => return Ok(true),
            // The next expiry came in between, or not when it was expected to.
            Ok(told) => early = i128::from(told > u64::from(timer.overrun)),
            Err(_) => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    fn timer(interval_ms: u64, left_ms: u64) -> PosixTimerEntry {
        PosixTimerEntry {
            it_id: 3,
            si_signo: 40,
            sival_ptr: 7,
            insec: interval_ms * MILLI,
            vnsec: left_ms * MILLI,
            ..PosixTimerEntry::default()
        }
    }

    fn signal(timer: &PosixTimerEntry) -> SiginfoEntry {
        let mut siginfo = vec![0; 128];
        for (at, word) in [(0, timer.si_signo), (8, libc::SI_TIMER as u32), (16, timer.it_id)] {
            siginfo[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        siginfo[24..32].copy_from_slice(&timer.sival_ptr.to_le_bytes());
        SiginfoEntry { siginfo }
    }

    #[test]
    fn a_start_in_the_past_leaves_what_was_left() {
        let now = 10 * SECOND;
        let Comeback::Expires(3, [0, _, sec, nanos]) = comeback(&timer(5, 2), Waiting::Missed(99), Some(now)) else {
            panic!("the clock reaches back half a second")
        };
        let start = i128::from(sec) * SECOND + i128::from(nanos);
        // As the kernel counts: whole periods since the first expiry, and the next is 2 ms away.
        let period = i128::from(5 * MILLI);
        assert_eq!((now - start) / period, 99);
        assert_eq!(period - (now - start) % period, i128::from(2 * MILLI));
        assert_eq!(comeback(&timer(0, 0), Waiting::Missed(0), Some(now)), Comeback::Expires(3, [0, 0, 10, 0]));
    }

    #[test]
    fn a_clock_that_is_too_young_leaves_the_count_to_the_signal() {
        let young = SECOND / 10;
        assert_eq!(comeback(&timer(5, 2), Waiting::Missed(99), Some(young)), Comeback::Counted(99));
        assert_eq!(comeback(&timer(5, 2), Waiting::Missed(u64::MAX), None), Comeback::Counted(i32::MAX));
        assert_eq!(comeback(&timer(5, 2), Waiting::Stale, None), Comeback::Dropped);
    }

    #[test]
    fn the_last_of_a_timers_signals_is_its_own() {
        let timer = timer(5, 2);
        let own = Comeback::Counted(4);
        let all = Comebacks(vec![(timer, Waiting::Missed(4), own)]);
        let other = signal(&PosixTimerEntry { it_id: 4, ..timer });
        let queue = [signal(&timer), other.clone(), signal(&timer), other];
        assert_eq!(all.of_queue(0, &queue), [Comeback::Sent, Comeback::Sent, own, Comeback::Sent]);
        assert_eq!(all.of_queue(9, &queue), [Comeback::Sent; 4]);
        assert_eq!(all.made(&timer), State::New);
    }
}
