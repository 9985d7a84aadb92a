//! The memory of a frozen process, read through its /proc/PID/mem: which asks no leave of the protection and pins nothing.

use super::PAGE;
use super::absent::Absent;
use super::ranges::{self, Range};
use super::write_behind::failed;
use crate::{Error, Object, Result};
use cryonaut_puppet::memory::Remote;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 18;

/// The memory.
#[derive(Debug)]
pub(super) struct FrozenMemory {
    pid: i32,
    mem: File,
}

impl FrozenMemory {
    /// That of process `pid`, whose /proc/PID/mem is `mem`.
    pub fn new(pid: i32, mem: File) -> Self {
        FrozenMemory { pid, mem }
    }

    /// Whose it is.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Pages of zeros among these, which ascend: of so many at a time, those are read of which `may_be` says that they may
    /// be.
    pub fn zeros_among(
        &self,
        ranges: &[Range],
        at_once: usize,
        mut may_be: impl FnMut(&[u64]) -> Result<Vec<bool>>,
    ) -> Result<Vec<Range>> {
        let pages: Vec<u64> = ranges.iter().flat_map(|range| (range.0..range.1).step_by(PAGE as usize)).collect();
        let mut suspects = Vec::new();
        for some in pages.chunks(at_once) {
            let told = may_be(some)?;
            let found = some.iter().zip(told).filter(|(_, may_be)| *may_be);
            found.for_each(|(page, _)| ranges::push(&mut suspects, (*page, *page + PAGE)));
        }
        self.zeros(&suspects)
    }

    /// Pages of zeros among these.
    fn zeros(&self, ranges: &[Range]) -> Result<Vec<Range>> {
        let (mut zeros, mut buffer) = (Vec::new(), Vec::new());
        for range in ranges {
            let mut at = range.0;
            while at < range.1 {
                buffer.resize(PIECE.min(range.1 - at) as usize, 0);
                self.read(&mut buffer, at)?;
                Absent::Zeros.same(at, &buffer).into_iter().for_each(|same| ranges::push(&mut zeros, same));
                at += buffer.len() as u64;
            }
        }
        Ok(zeros)
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        self.mem.read_exact_at(buffer, at).map_err(|e| {
            let object = Object::Mapping(self.pid, at, "memory".into());
            Error::kernel(object, "read its contents", crate::error::errno_of(&e))
        })
    }

    /// Has all of the spans but their first `skip` bytes written by `write`, piece by piece.
    pub fn copy(
        &self,
        spans: &[Remote],
        mut skip: u64,
        mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        for span in spans {
            let (mut at, end) = (span.address + skip.min(span.len), span.address + span.len);
            skip = skip.saturating_sub(span.len);
            while at < end {
                buffer.resize(PIECE.min(end - at) as usize, 0);
                self.read(&mut buffer, at)?;
                write(&buffer).map_err(|e| failed(&e))?;
                at += buffer.len() as u64;
            }
        }
        Ok(())
    }
}
