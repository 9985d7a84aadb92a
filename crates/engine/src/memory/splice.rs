//! Pages that go from a process into the pages file with one copy: the process
//! puts them into pipes by reference (`puppet/outlet.rs`), the file's thread
//! splices the pipes into it. While it does, the next ones are filled.
//!
//! What cannot go this way is read through /proc/PID/mem, in its place.

use super::frozen_memory::FrozenMemory;
use super::ranges::Range;
use super::write_behind::{WriteBehind, failed};
use crate::Result;
use cryonaut_puppet::memory::Remote;
use cryonaut_puppet::{Hand, Outlet, Portion};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

/// The way.
#[derive(Debug)]
pub(super) struct Splice<'a> {
    hand: &'a mut Hand,
    source: Arc<Source>,
    /// Gone once it is closed.
    outlet: Option<Outlet>,
    /// Each tells when what was pushed is in the file.
    under_way: VecDeque<Receiver<()>>,
}

/// What the thread of the file needs to know.
#[derive(Debug)]
struct Source {
    memory: FrozenMemory,
    /// The file system cannot take pages out of a pipe.
    refused: AtomicBool,
}

impl<'a> Splice<'a> {
    /// For a process that has the pipes of `outlet`.
    pub fn new(hand: &'a mut Hand, memory: FrozenMemory, outlet: Outlet) -> Self {
        let source = Arc::new(Source { memory, refused: AtomicBool::new(false) });
        Splice { hand, source, outlet: Some(outlet), under_way: VecDeque::new() }
    }

    /// Bytes that [`Splice::push`] takes at most when the file is so long.
    pub fn room(&self, position: u64) -> usize {
        self.outlet.as_ref().map_or(0, |outlet| outlet.room(position))
    }

    /// Pages of zeros among these, which ascend: not all if the process may not read them all.
    pub fn zeros(&mut self, ranges: &[Range]) -> Result<Vec<Range>> {
        let Some(outlet) = &mut self.outlet else { return Ok(Vec::new()) };
        let hand = &mut *self.hand;
        let may_be = |pages: &[u64]| Ok(outlet.begin_with_zeros(hand, pages)?);
        self.source.memory.zeros_among(ranges, Outlet::PROBED_AT_ONCE, may_be)
    }

    /// Appends pages of the process to the file.
    pub fn push(&mut self, spans: &[Remote], file: &mut WriteBehind) -> Result<()> {
        let Some(outlet) = &mut self.outlet else { return Ok(()) };
        while self.under_way.len() >= Outlet::TURNS {
            let pushed = self.under_way.pop_front();
            if pushed.is_some_and(|pushed| pushed.recv().is_err()) {
                return file.why_it_ended();
            }
        }
        let portions = outlet.fill(self.hand, spans, file.len())?;
        let (tell, pushed) = sync_channel(1);
        let source = self.source.clone();
        let work = move |file: &File| {
            portions.iter().try_for_each(|portion| source.append(portion, file))?;
            // Nobody waits for the last.
            let _ = tell.send(());
            Ok(())
        };
        file.append_by(spans.iter().map(|span| span.len).sum(), Box::new(work))?;
        self.under_way.push_back(pushed);
        Ok(())
    }

    /// Closes the pipes, as far as the process has them. What is in them still goes into the file.
    pub fn close(mut self) -> Result<()> {
        self.outlet.take().map_or(Ok(()), |outlet| Ok(outlet.close(self.hand)?))
    }
}

impl Drop for Splice<'_> {
    fn drop(&mut self) {
        // Only after an error, which is the one to tell.
        if let Some(Err(e)) = self.outlet.take().map(|outlet| outlet.close(self.hand)) {
            tracing::warn!("closing what was open in process {}: {e}", self.source.memory.pid());
        }
    }
}

impl Source {
    fn append(&self, portion: &Portion, file: &File) -> Result<()> {
        let mut moved = 0;
        while moved < portion.filled && !self.refused.load(Ordering::Relaxed) {
            let left = portion.filled - moved;
            match rustix::pipe::splice(&portion.end, None, file, None, left, SpliceFlags::empty()) {
                Ok(0) => return Err(failed(&std::io::ErrorKind::WriteZero.into())),
                Ok(count) => moved += count,
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) => self.refused.store(true, Ordering::Relaxed),
                Err(errno) => return Err(failed(&errno.into())),
            }
        }
        self.memory.copy(&portion.spans, moved as u64, |bytes| (&*file).write_all(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    /// Our own memory, of which `filled` bytes come through a pipe.
    fn appended(memory: &[u8], filled: usize, mut file: File) -> Vec<u8> {
        let (end, mut into) = std::io::pipe().unwrap();
        into.write_all(&memory[..filled]).unwrap();
        let address = memory.as_ptr() as u64;
        let half = memory.len() as u64 / 2;
        let spans = vec![Remote { address, len: half }, Remote { address: address + half, len: half }];
        let mem = File::open("/proc/self/mem").unwrap();
        let source = Source { memory: FrozenMemory::new(0, mem), refused: AtomicBool::new(false) };
        source.append(&Portion { end: Arc::new(end.into()), spans, filled }, &file).unwrap();
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn what_is_not_in_the_pipe_is_read() {
        let memory: Vec<u8> = (0..16384u32).map(|n| (n % 251) as u8).collect();
        for filled in [0, 4096, 8192, 12288, 16384] {
            assert!(appended(&memory, filled, tempfile::tempfile().unwrap()) == memory, "{filled}");
        }
    }

    #[test]
    fn a_file_that_refuses_a_pipe_is_written_without() {
        let memory = vec![7; 8192];
        let dir = tempfile::tempdir().unwrap();
        // splice(2): EINVAL when the target is open for appending.
        let file = File::options().create(true).append(true).read(true).open(dir.path().join("pages")).unwrap();
        assert!(appended(&memory, 8192, file) == memory);
    }
}
