//! Numbers by which threads call rings instead of descriptors
//! (IORING_REGISTER_RING_FDS): each has its own, in
//! `cryonaut-io-uring-threads.json`. The ring is one that the process has a
//! descriptor of.

use super::{CLOSE, is_mapping};
use crate::freeze::Process;
use crate::plan::ProcessPlan;
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::sys::io_uring;
use cryonaut_puppet::{Batch, Context, Hand, Job};
use std::collections::BTreeMap;

const NAME: &str = "io-uring-threads";
/// IORING_REGISTER_RING_FDS.
const RING_FDS: u32 = 20;

/// By thread: its numbers, and the descriptor of the ring of each.
pub type Names = BTreeMap<i32, BTreeMap<u32, i32>>;

/// Those of the threads of a process.
pub fn names(process: &Process) -> Result<Names> {
    let mut all = Names::new();
    if !process.maps.iter().any(is_mapping) {
        return Ok(all);
    }
    let Some(&any) = process.task.fds()?.first() else { return Ok(all) };
    for thread in &process.threads {
        let failed = |e| Error::kernel(Object::Thread(thread.tid), "see whether it has registered a ring", e);
        let rings = io_uring::registered(thread.tid, any).map_err(failed)?;
        if rings.is_empty() {
            continue;
        }
        let known = io_uring::tables::descriptors(process.speaker()).map_err(failed)?;
        for (number, file) in rings {
            let Some(ring) = known.iter().find(|descriptor| descriptor.file == file) else {
                let reason = format!("it has registered an io_uring as {number} and closed all its descriptors");
                return Err(Error::unsupported(Object::Thread(thread.tid), reason, CLOSE));
            };
            all.entry(thread.tid).or_default().insert(number, ring.fd);
        }
    }
    Ok(all)
}

/// Writes those of all threads of a tree.
pub fn write_names(images: &DumpDir, all: &Names) -> Result<()> {
    if all.is_empty() { Ok(()) } else { Ok(images.write_json(NAME, all)?) }
}

/// Lets the threads of a process, which has all its descriptors, register them.
pub(super) fn build(hand: &mut Hand, process: &ProcessPlan, images: &ImageDir) -> Result<()> {
    let all: Names = images.read_json(NAME)?.unwrap_or_default();
    for (tid, _) in process.cores() {
        let Some(numbers) = all.get(&tid) else { continue };
        let mut b = Batch::new();
        for (number, fd) in numbers {
            // struct io_uring_rsrc_update
            let words = [u64::from(*number), *fd as u64];
            let update = b.bytes(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>());
            b.call(libc::SYS_io_uring_register, [(*fd).into(), RING_FDS.into(), update.into(), 1.into()]);
        }
        if tid == hand.tid() {
            hand.run(&mut b)?;
        } else {
            hand.run_in_threads(&mut [Job { tid, context: &Context::read(tid)?, batch: &mut b }])?;
        }
    }
    Ok(())
}
