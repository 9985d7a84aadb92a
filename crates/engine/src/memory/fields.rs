//! The fields of an address space that are no mapping: brk, stack, arguments,
//! environment, auxv, executable (prctl(2), PR_SET_MM_MAP).

use crate::files::{Collect, regular};
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::records::{AioRingEntry, MmEntry, VmaEntry};
use cryonaut_puppet::{Arg, Batch, Call, Data};
use rustix::io::Errno;

/// The call by which a process reads its own auxv (linux/prctl.h, Linux 6.4).
const PR_GET_AUXV: i32 = 0x4155_5856;
/// Bytes of an auxv, at most: architectures have room for some 50 words (AT_VECTOR_SIZE).
const AUXV_ROOM: usize = 512;

/// What only the process itself can tell.
#[derive(Debug)]
pub struct MmAsk {
    brk: Call,
    dumpable: Call,
    thp: Call,
    auxv: (Call, Data),
}

impl MmAsk {
    /// Adds the questions to a batch for the process.
    pub fn new(b: &mut Batch) -> Self {
        let auxv = b.space(AUXV_ROOM);
        let read_auxv = [PR_GET_AUXV.into(), auxv.into(), auxv.len().into(), 0.into(), 0.into()];
        MmAsk {
            brk: b.call(libc::SYS_brk, [Arg::Val(0)]),
            dumpable: b.call(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]),
            auxv: (b.attempt(libc::SYS_prctl, read_auxv), auxv),
            thp: b.attempt(libc::SYS_prctl, [libc::PR_GET_THP_DISABLE.into(), 0.into(), 0.into(), 0.into(), 0.into()]),
        }
    }

    /// Its auxv, with all the room that the kernel keeps for it.
    fn auxv(&self, process: &Process, answers: &Batch) -> Result<Vec<u8>> {
        let (call, bytes) = self.auxv;
        let told = answers.result(call).ok().and_then(|len| answers.read(bytes).get(..len as usize));
        Ok(told.map_or_else(|| process.task.read_single("auxv"), |told| Ok(told.to_vec()))?)
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
    let exe = ("exe", process.objects.map(|objects| objects.exe));
    let auxv = ask.auxv(process, answers)?;
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
        exe_file_id: regular::collect_place(cx, &process.task, process.pid, exe, libc::O_RDONLY as u32)?.id,
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
