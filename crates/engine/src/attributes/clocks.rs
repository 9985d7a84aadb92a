//! The clocks that a time namespace can shift (time_namespaces(7)): as they
//! stand, for a reader that gives the tree a namespace in which they go on.

use super::unanswered;
use crate::Result;
use crate::freeze::Process;
use cryonaut_image::records::{TimensEntry, Timespec};
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_puppet::{Batch, Hand};
use rustix::time::{ClockId, clock_gettime};

/// The time namespaces written so far.
#[derive(Debug)]
pub struct Clocks {
    own: Option<u32>,
    written: Vec<u32>,
}

impl Clocks {
    /// Writes the clocks of our own namespace; `own` is its id.
    pub fn new(images: &DumpDir, own: Option<u32>) -> Result<Self> {
        let now = |clock| {
            let t = clock_gettime(clock);
            Timespec { tv_sec: t.tv_sec as u64, tv_nsec: t.tv_nsec as u64 }
        };
        let record = TimensEntry { monotonic: now(ClockId::Monotonic), boottime: now(ClockId::Boottime) };
        images.write_one(ImageKind::Timens, 0u64, &record)?;
        Ok(Clocks { own, written: Vec::new() })
    }

    /// Writes those of a process's namespace `id`, unless they have been.
    pub fn note(&mut self, images: &DumpDir, id: Option<u32>, process: &mut Process) -> Result<()> {
        let Some(id) = id.filter(|id| Some(*id) != self.own && !self.written.contains(id)) else {
            return Ok(());
        };
        images.write_one(ImageKind::Timens, u64::from(id), &told_by(process.hand()?)?)?;
        self.written.push(id);
        Ok(())
    }
}

/// The clocks as a process sees them.
fn told_by(hand: &mut Hand) -> Result<TimensEntry> {
    let mut b = Batch::new();
    let [monotonic, boottime] = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].map(|clock| {
        let room = b.space(16);
        (room, b.call(libc::SYS_clock_gettime, [clock.into(), room.into()]))
    });
    hand.run(&mut b)?;
    let answer = |(room, call)| -> Result<Timespec> {
        b.result(call).map_err(unanswered(hand.pid(), "clocks"))?;
        Ok(Timespec { tv_sec: b.read_u64(room), tv_nsec: b.read_u64(room.at(8)) })
    };
    Ok(TimensEntry { monotonic: answer(monotonic)?, boottime: answer(boottime)? })
}
