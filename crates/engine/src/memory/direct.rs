//! Pages that a process writes into the pages file itself (`puppet/writer.rs`), the shortest way: one copy, as large as the
//! kernel likes it. What comes next is looked through meanwhile, on the other processor.
//!
//! The page cache is charged to the process's memory cgroup, and its limits of file sizes and I/O hold. So it is a way for
//! those only who are in all of our own cgroups, and without such a limit: then nothing is counted otherwise than if we
//! wrote. And for those who are alone in their tree: process_vm_readv(2), by which the pages are looked through, would end
//! that they share them with others.

use super::frozen_memory::FrozenMemory;
use super::ranges::Range;
use super::write_behind::WriteBehind;
use crate::Result;
use cryonaut_kernel::proc::Task;
use cryonaut_puppet::memory::{MAX_SPANS, Remote, read_spans};
use cryonaut_puppet::{Hand, Piece, Writer};
use std::os::unix::fs::FileExt;

/// Bytes that are written at a time: it takes a hundred times as long as to wake the hand.
pub(super) const AT_ONCE: usize = 16 << 20;
/// Bytes at the beginning of a page that are looked at first: a line of the processor's cache.
const PROBED: u64 = 64;

/// The way.
#[derive(Debug)]
pub(super) struct Direct<'a> {
    hand: &'a mut Hand,
    memory: FrozenMemory,
    /// Gone once it is closed.
    writer: Option<Writer>,
}

/// Whether a process is in all of our cgroups. What cannot be told counts as a no.
pub(super) fn counts_as_ours(task: &Task) -> bool {
    let cgroups = |task: &Task| task.read("cgroup").ok();
    let ours = Task::current().ok().and_then(|us| cgroups(&us));
    ours.is_some() && ours == cgroups(task)
}

impl<'a> Direct<'a> {
    /// For a process that has the pages file already, by `writer`; the file must [stay direct](WriteBehind::stay_direct).
    pub fn new(hand: &'a mut Hand, memory: FrozenMemory, writer: Writer) -> Self {
        Direct { hand, memory, writer: Some(writer) }
    }

    /// Pages of zeros among these, which ascend; while the process writes what was pushed before.
    pub fn zeros(&self, ranges: &[Range]) -> Result<Vec<Range>> {
        let mut firsts = Vec::new();
        let may_be = |pages: &[u64]| {
            let spans: Vec<Remote> = pages.iter().map(|page| Remote { address: *page, len: PROBED }).collect();
            firsts.resize(pages.len() * PROBED as usize, 0);
            // What cannot be read this way is looked at as a whole.
            let read = read_spans(self.hand.tid(), &spans, &mut firsts).unwrap_or(0);
            firsts[read..].fill(0);
            Ok(firsts.chunks_exact(PROBED as usize).map(|first| first.iter().all(|byte| *byte == 0)).collect())
        };
        self.memory.zeros_among(ranges, MAX_SPANS, may_be)
    }

    /// Begins to append pages to the file.
    pub fn push(&mut self, spans: &[Remote], file: &mut WriteBehind) -> Result<()> {
        self.settle(file)?;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.start(self.hand, spans, file.len())?;
        file.has_grown(spans.iter().map(|span| span.len).sum());
        Ok(())
    }

    /// Waits until what was pushed is in the file.
    pub fn settle(&mut self, file: &WriteBehind) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        for (Piece { mut position, spans }, written) in writer.wait(self.hand)? {
            position += written;
            // What it could not read, or not write: in the second case the error is ours.
            self.memory.copy(&spans, written, |bytes| {
                file.file().write_all_at(bytes, position)?;
                position += bytes.len() as u64;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes the file back from the process.
    pub fn close(mut self, file: &WriteBehind) -> Result<()> {
        self.settle(file)?;
        self.writer.take().map_or(Ok(()), |writer| Ok(writer.close(self.hand)?))
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        // Only after an error, which is the one to tell.
        if let Some(Err(e)) = self.writer.take().map(|writer| writer.close(self.hand)) {
            tracing::warn!("closing what was open in process {}: {e}", self.memory.pid());
        }
    }
}
