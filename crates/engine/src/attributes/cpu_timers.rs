//! Which thread's processor time a POSIX timer counts, when it was made on
//! `CLOCK_THREAD_CPUTIME_ID`: the kernel shows the clock as that of "the
//! caller", whoever it was. Kept beside the record of the timers, in
//! `cryonaut-cpu-timers.json`.
//!
//! The tree stands still, so only a thread that runs a batch uses any time:
//! the timer of which less is left afterwards is that thread's.

use super::unanswered;
use crate::freeze::{Process, Thread};
use crate::{Error, Result};
use cryonaut_image::records::PosixTimerEntry;
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_puppet::{Batch, Hand, Job};
use std::collections::BTreeMap;

/// The file's name, short of what all such files have in theirs.
const NAME: &str = "cpu-timers";
/// The clock of the calling thread as the kernel keeps it (include/linux/posix-timers.h, THREAD_CLOCK).
pub(super) const OWN_CLOCK: i32 = -2;

/// The thread of each such timer of a process, by the timer's id.
pub type Owners = BTreeMap<u32, i32>;

/// All processes', by pid.
pub type AllOwners = BTreeMap<i32, Owners>;

/// Writes those of a tree, if there are any.
pub fn write(images: &DumpDir, all: &AllOwners) -> Result<()> {
    if all.is_empty() { Ok(()) } else { Ok(images.write_json(NAME, all)?) }
}

/// Those of an image.
pub fn load(images: &ImageDir) -> Result<AllOwners> {
    Ok(images.read_json(NAME)?.unwrap_or_default())
}

/// Finds the threads whose time timers of a frozen process count. A timer that
/// is not running gives nothing to see: it is taken for that of the thread
/// which gets its signal, else for the first thread's.
pub fn owners(process: &mut Process, timers: &[PosixTimerEntry]) -> Result<Owners> {
    let mut unknown: Vec<&PosixTimerEntry> = timers.iter().filter(|t| t.clock_id as i32 == OWN_CLOCK).collect();
    let mut found = Owners::new();
    if unknown.is_empty() || process.threads.len() == 1 {
        return Ok(found);
    }
    let Some(mut hand) = process.hand.take() else { return Ok(found) };
    let result = find(process, &mut hand, &mut unknown, &mut found);
    process.hand = Some(hand);
    result.map(|()| found)
}

fn find(process: &Process, hand: &mut Hand, unknown: &mut Vec<&PosixTimerEntry>, found: &mut Owners) -> Result<()> {
    let others = process.threads.get(1..).unwrap_or_default();
    let heard = |tid: i32, timers: &[&PosixTimerEntry]| timers.iter().any(|t| t.notify_thread_id == Some(tid));
    for timer in unknown.extract_if(.., |t| t.vsec | t.vnsec == 0) {
        let target = timer.notify_thread_id.filter(|tid| others.iter().any(|thread| thread.tid == *tid));
        found.extend(target.map(|tid| (timer.it_id, tid)));
    }
    // The first thread asks, which uses its own time.
    let before = left(hand, unknown)?;
    let mut now = left(hand, unknown)?;
    let mut keep = before.iter().zip(&now).map(|(a, b)| a == b);
    unknown.retain(|_| keep.next().unwrap_or(true));
    now = left(hand, unknown)?;
    let (mut order, rest): (Vec<&Thread>, Vec<&Thread>) = others.iter().partition(|t| heard(t.tid, unknown));
    order.extend(rest);
    for thread in order {
        if unknown.is_empty() {
            break;
        }
        let mut b = Batch::new();
        b.call(libc::SYS_getpid, []);
        hand.run_in_threads(&mut [Job { tid: thread.tid, context: &thread.context, batch: &mut b }])?;
        let after = left(hand, unknown)?;
        let mut less = now.iter().zip(&after).map(|(a, b)| a != b);
        found.extend(unknown.extract_if(.., |_| less.next().unwrap_or(false)).map(|t| (t.it_id, thread.tid)));
        now = left(hand, unknown)?;
    }
    Ok(())
}

/// What is left of each timer, seconds and nanoseconds.
fn left(hand: &mut Hand, timers: &[&PosixTimerEntry]) -> Result<Vec<(u64, u64)>> {
    let mut b = Batch::new();
    let mut rooms = Vec::with_capacity(timers.len());
    for timer in timers {
        let room = b.space(32);
        rooms.push((room, b.call(libc::SYS_timer_gettime, [timer.it_id.into(), room.into()])));
    }
    hand.run(&mut b)?;
    let one = |(room, call): &(cryonaut_puppet::Data, cryonaut_puppet::Call)| -> Result<(u64, u64)> {
        b.result(*call).map_err(unanswered(hand.pid(), "POSIX timers"))?;
        Ok((b.read_u64(room.at(16)), b.read_u64(room.at(24))))
    };
    rooms.iter().map(one).collect::<std::result::Result<_, Error>>()
}
