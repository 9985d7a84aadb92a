//! Restartable sequences (rseq(2)): where a thread's area is, and what becomes
//! of a thread that is held in the middle of a sequence.

use super::unanswered;
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::RseqEntry;
use cryonaut_kernel::sys::ptrace::{self, Rseq};
use cryonaut_puppet::Context;

/// Offset of `rseq_cs` in `struct rseq`.
const CURRENT: u64 = 8;

/// The area of a thread that was just stopped. A thread inside a sequence is
/// moved to the abort handler of that, as the kernel does at every preemption.
/// It has to be done here and now: as soon as a thread runs elsewhere, for us,
/// the kernel takes the sequence for left and forgets it.
pub fn leave_section(tid: i32, context: &mut Context) -> Result<Option<Rseq>> {
    let area = ptrace::rseq(pid_of(tid)?).map_err(unanswered(tid, "rseq area"))?;
    if area.pointer == 0 {
        return Ok(None);
    }
    let read = |at: u64, buf: &mut [u8]| {
        cryonaut_puppet::memory::read(tid, at, buf)
            .map_err(|e| Error::kernel(Object::Thread(tid), "read its rseq area", e))
    };
    // Cheaper than other ways to read so little, and pages that a fork left shared stay so.
    let section = ptrace::peek_data(pid_of(tid)?, area.pointer + CURRENT)
        .map_err(|e| Error::kernel(Object::Thread(tid), "read its rseq area", e))?;
    if section != 0 {
        // struct rseq_cs: version, flags, start, length, abort.
        let mut cs = [0; 32];
        read(section, &mut cs)?;
        let word = |i: usize| u64::from_le_bytes(cs[i..i + 8].try_into().unwrap_or_default());
        let (start, len, abort) = (word(8), word(16), word(24));
        if context.regs.rip.wrapping_sub(start) < len {
            context.regs.rip = abort;
        }
    }
    Ok(Some(area))
}

/// The record of an area.
#[must_use]
pub fn record(area: Rseq) -> RseqEntry {
    RseqEntry {
        rseq_abi_pointer: area.pointer,
        rseq_abi_size: area.size,
        signature: area.signature,
        rseq_cs_pointer: None,
    }
}
