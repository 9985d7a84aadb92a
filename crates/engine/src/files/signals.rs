//! Open files that send signals (`O_ASYNC`, fcntl(2)).
//!
//! The owner is set on the built file. The flag itself is set from inside a
//! process that has the file: the kernel keeps the number of that moment and
//! tells it in `si_fd`.

use super::Settle;
use crate::{Error, Object, Result};
use cryonaut_image::records::FileEntry;
use cryonaut_puppet::Batch;
use rustix::fs::OFlags;

const O_ASYNC: u32 = libc::O_ASYNC as u32;

/// Sets `O_ASYNC` on the files that had it. Signal owners must be set, and
/// nothing may happen to these files any more.
pub fn enable(cx: &mut Settle<'_>) -> Result<()> {
    let wanted: Vec<u32> = cx.records.values().filter(|e| flags_of(cx, e) & O_ASYNC != 0).map(|e| e.id).collect();
    for id in wanted {
        let Some(file) = cx.built.get(&id) else { continue };
        let failed = |action: &'static str| move |e| Error::kernel(Object::File(id, "status flags".into()), action, e);
        let flags = rustix::fs::fcntl_getfl(file).map_err(failed("read its status flags"))?;
        let Some((pid, number)) = cx.holder(id) else {
            // It is on its way in a message, where no number is known.
            rustix::fs::fcntl_setfl(file, flags | OFlags::from_bits_retain(O_ASYNC)).map_err(failed("set them"))?;
            continue;
        };
        let mut batch = Batch::new();
        batch.call(libc::SYS_fcntl, [number.into(), libc::F_SETFL.into(), (flags.bits() | O_ASYNC).into()]);
        cx.run_in(pid, &mut batch)?;
    }
    Ok(())
}

/// The open flags in a record; those of a FIFO stand with its path.
fn flags_of(cx: &Settle<'_>, entry: &FileEntry) -> u32 {
    let path = entry.fifo.and_then(|fifo| cx.records.get(&fifo.regf_id?)?.reg.as_ref()).map(|reg| reg.flags);
    let all = [
        path,
        entry.reg.as_ref().filter(|_| cx.holder(entry.id).is_some()).map(|r| r.flags),
        entry.isk.as_ref().map(|r| r.flags),
        entry.psk.as_ref().map(|r| r.flags),
        entry.nlsk.as_ref().map(|r| r.flags),
        entry.usk.as_ref().map(|r| r.flags),
        entry.efd.as_ref().map(|r| r.flags),
        entry.epfd.as_ref().map(|r| r.flags),
        entry.sgfd.as_ref().map(|r| r.flags),
        entry.tfd.as_ref().map(|r| r.flags),
        entry.ify.as_ref().map(|r| r.flags),
        entry.ffy.as_ref().map(|r| r.flags),
        entry.pipe.as_ref().map(|r| r.flags),
        entry.tty.as_ref().map(|r| r.flags),
        entry.memfd.as_ref().map(|r| r.flags),
    ];
    all.into_iter().flatten().next().unwrap_or(0)
}
