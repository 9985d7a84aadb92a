//! The fields of an address space that are no mapping: brk, stack, arguments,
//! environment, auxv, executable (prctl(2), PR_SET_MM_MAP).

use crate::files::{Collect, regular};
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::records::{AioRingEntry, MmEntry, VmaEntry};
use cryonaut_puppet::{Arg, Batch, Call};
use rustix::io::Errno;

/// What only the process itself can tell.
#[derive(Debug)]
pub struct MmAsk {
    brk: Call,
    dumpable: Call,
    thp: Call,
}

impl MmAsk {
    /// Adds the questions to a batch for the process.
    pub fn new(b: &mut Batch) -> Self {
        MmAsk {
            brk: b.call(libc::SYS_brk, [Arg::Val(0)]),
            dumpable: b.call(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]),
            thp: b.attempt(libc::SYS_prctl, [libc::PR_GET_THP_DISABLE.into(), 0.into(), 0.into(), 0.into(), 0.into()]),
        }
    }
}

/// The record of the address space.
pub fn mm_record(
    cx: &mut Collect<'_>,
    process: &Process,
    ask: &MmAsk,
    answers: &Batch,
    vmas: Vec<VmaEntry>,
    aios: Vec<AioRingEntry>,
) -> Result<MmEntry> {
    let failed = |e: Errno| Error::kernel(Object::Process(process.pid), "ask about its memory", e);
    let s = &process.stat;
    let auxv = process.task.read_single("auxv")?;
    Ok(MmEntry {
        mm_start_code: s.start_code,
        mm_end_code: s.end_code,
        mm_start_data: s.start_data,
        mm_end_data: s.end_data,
        mm_start_stack: s.start_stack,
        mm_start_brk: s.start_brk,
        mm_brk: answers.result(ask.brk).map_err(failed)?,
        mm_arg_start: s.arg_start,
        mm_arg_end: s.arg_end,
        mm_env_start: s.env_start,
        mm_env_end: s.env_end,
        exe_file_id: regular::collect_path(cx, &process.task, process.pid, "exe", libc::O_RDONLY as u32)?.id,
        mm_saved_auxv: used_auxv(&auxv),
        vmas,
        dumpable: Some(answers.result(ask.dumpable).map_err(failed)? as i32),
        aios,
        thp_disabled: Some(answers.result(ask.thp).unwrap_or(0) != 0),
    })
}

/// The auxiliary vector without its end mark: the file shows all the room that
/// the kernel keeps for it, and readers refuse more words than they have room for.
fn used_auxv(bytes: &[u8]) -> Vec<u64> {
    let words: Vec<u64> = bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default())).collect();
    words.chunks_exact(2).take_while(|pair| pair[0] != 0).flatten().copied().collect()
}
