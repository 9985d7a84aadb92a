//! The memory of a process, read from outside while it runs or stands still.

use crate::Result;
use crate::freeze::Process;
use crate::memory::ranges::Range;
use cryonaut_kernel::proc::Task;
use cryonaut_puppet::memory::{MAX_SPANS, Remote, read_spans};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;

/// The memory.
#[derive(Debug)]
pub struct RunningMemory {
    /// Its directory in /proc: that of its [speaker](Process::speaker).
    pub task: Task,
    /// The speaker.
    pub tid: i32,
    mem: File,
    /// No other process is in the tree.
    pub is_alone: bool,
    buffer: Vec<u8>,
}

impl RunningMemory {
    /// Of a process that was looked at before.
    ///
    /// # Errors
    /// If it has ended.
    pub fn open(process: &Process, is_alone: bool) -> Result<RunningMemory> {
        let task = process.task.clone();
        let mem = File::from(task.open_file("mem", OFlags::RDONLY)?);
        Ok(RunningMemory { task, tid: process.speaker(), mem, is_alone, buffer: Vec::new() })
    }

    /// Of a process that is not known otherwise, nor whether it is alone.
    ///
    /// # Errors
    /// If it has ended.
    pub fn of_task(task: Task, pid: i32) -> Result<RunningMemory> {
        let mem = File::from(task.open_file("mem", OFlags::RDONLY)?);
        Ok(RunningMemory { task, tid: pid, mem, is_alone: false, buffer: Vec::new() })
    }

    /// Reads pages, one behind the other; as many as [`pieces`] puts together.
    ///
    /// # Errors
    /// If some of them are not there.
    pub fn read(&mut self, runs: &[Range]) -> std::io::Result<()> {
        let len = runs.iter().map(|run| (run.1 - run.0) as usize).sum();
        self.buffer.resize(len, 0);
        // One call for many runs; but it pins pages, and would end what is shared with others until somebody writes.
        if self.is_alone && runs.len() > 1 {
            let spans: Vec<Remote> = runs.iter().map(|run| Remote { address: run.0, len: run.1 - run.0 }).collect();
            if read_spans(self.tid, &spans, &mut self.buffer) == Ok(len) {
                return Ok(());
            }
        }
        let mut rest = self.buffer.as_mut_slice();
        for run in runs {
            let (now, later) = rest.split_at_mut((run.1 - run.0) as usize);
            self.mem.read_exact_at(now, run.0)?;
            rest = later;
        }
        Ok(())
    }

    /// What was read last.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }
}

/// Runs of pages in groups that can be read at a time.
#[must_use]
pub fn pieces(runs: &[Range]) -> Vec<Vec<Range>> {
    let (mut all, mut last, mut filled) = (Vec::new(), Vec::new(), 0);
    for run in runs {
        let mut at = run.0;
        while at < run.1 {
            let len = (PIECE - filled).min(run.1 - at);
            last.push((at, at + len));
            (at, filled) = (at + len, filled + len);
            if filled == PIECE || last.len() == MAX_SPANS {
                all.push(std::mem::take(&mut last));
                filled = 0;
            }
        }
    }
    all.extend((!last.is_empty()).then_some(last));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_where_a_piece_is_full() {
        let runs = [(0, 4096), (8192, 8192 + 2 * PIECE), (1 << 40, (1 << 40) + 4096)];
        let all = pieces(&runs);
        assert_eq!(all.concat().iter().map(|run| run.1 - run.0).sum::<u64>(), 2 * PIECE + 8192);
        assert!(all[..2].iter().all(|piece| piece.iter().map(|run| run.1 - run.0).sum::<u64>() == PIECE));
        let many: Vec<Range> = (0..MAX_SPANS as u64 + 1).map(|n| (n << 13, (n << 13) + 1)).collect();
        assert_eq!(pieces(&many).iter().map(Vec::len).collect::<Vec<_>>(), [MAX_SPANS, 1]);
    }
}
