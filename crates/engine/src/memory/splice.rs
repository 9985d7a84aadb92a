//! Pages that go from a process into the pages file with one copy: the process
//! puts them into pipes by reference (`puppet/outlet.rs`), we splice the pipes
//! into the file. While we do, it fills the next ones.
//!
//! The process could write to the file itself, which is one copy as well. But
//! then the page cache would be charged to its memory cgroup (an image on a
//! tmpfs could have it killed), and its limits of file size and I/O would hold.
//!
//! What cannot go this way is read through /proc/PID/mem, in its place.

use super::write_behind::failed;
use crate::attributes::filter;
use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_puppet::memory::Remote;
use cryonaut_puppet::{Filling, Hand, Outlet, Portion, farewell_calls};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// Bytes of pages from which on the pipes are worth it.
pub const WORTH_IT: u64 = 8 << 20;
/// Bytes that are read at a time of what cannot be spliced.
const PIECE: u64 = 1 << 18;

/// The way.
#[derive(Debug)]
pub struct Splice<'a> {
    hand: &'a mut Hand,
    mem: &'a File,
    /// Gone once it is closed.
    outlet: Option<Outlet>,
    under_way: Option<Filling>,
    /// The file system cannot take pages out of a pipe.
    refused: bool,
}

impl<'a> Splice<'a> {
    /// Opens it, if the process can serve: `mem` is its /proc/PID/mem.
    ///
    /// Between batches a hand must be where its farewell would close the pipes;
    /// and its filters must not mind, should we die, the calls that are left.
    pub fn open(process: &Process, hand: &'a mut Hand, mem: &'a File) -> Option<Self> {
        let calls = [&farewell_calls()[..], &Outlet::calls()].concat();
        if !filter::permits(hand.tid(), process.status.seccomp, &calls) {
            return None;
        }
        let outlet = Outlet::open(hand)
            .inspect_err(|e| tracing::debug!("memory of process {} is copied twice: {e}", process.pid))
            .ok()?;
        Some(Splice { hand, mem, outlet: Some(outlet), under_way: None, refused: false })
    }

    /// Bytes that [`Splice::push`] takes at most.
    pub fn room(&self) -> usize {
        self.outlet.as_ref().map_or(0, Outlet::room)
    }

    /// Appends pages of the process to the file, sooner or later.
    pub fn push(&mut self, spans: &[Remote], file: &File) -> Result<()> {
        let before = self.wait()?;
        match &mut self.outlet {
            Some(outlet) if !self.refused => self.under_way = Some(outlet.start(self.hand, spans)?),
            _ => return self.copy(spans, 0, file),
        }
        self.move_on(before, file)
    }

    /// Appends all that is under way.
    pub fn drain(&mut self, file: &File) -> Result<()> {
        let portions = self.wait()?;
        self.move_on(portions, file)
    }

    fn wait(&mut self) -> Result<Vec<Portion>> {
        match (&self.outlet, self.under_way.take()) {
            (Some(outlet), Some(filling)) => Ok(outlet.wait(self.hand, filling)?),
            _ => Ok(Vec::new()),
        }
    }

    fn move_on(&mut self, portions: Vec<Portion>, file: &File) -> Result<()> {
        for portion in portions {
            let mut moved = 0;
            while let (Some(outlet), false) = (&self.outlet, self.refused || moved == portion.filled) {
                let end = outlet.end(&portion);
                match rustix::pipe::splice(end, None, file, None, portion.filled - moved, SpliceFlags::empty()) {
                    Ok(0) => return Err(failed(&std::io::ErrorKind::WriteZero.into())),
                    Ok(count) => moved += count,
                    Err(Errno::INTR) => {}
                    Err(Errno::INVAL) => self.refused = true,
                    Err(errno) => return Err(failed(&errno.into())),
                }
            }
            self.copy(&portion.spans, moved as u64, file)?;
        }
        Ok(())
    }

    /// Appends spans without the pipes, all but their first `skip` bytes.
    fn copy(&self, spans: &[Remote], mut skip: u64, mut file: &File) -> Result<()> {
        let mut buffer = Vec::new();
        for span in spans {
            let (mut at, end) = (span.address + skip.min(span.len), span.address + span.len);
            skip = skip.saturating_sub(span.len);
            while at < end {
                buffer.resize(PIECE.min(end - at) as usize, 0);
                self.mem.read_exact_at(&mut buffer, at).map_err(|e| {
                    let object = Object::Mapping(self.hand.pid(), at, "memory".into());
                    Error::kernel(object, "read its contents", crate::error::errno_of(&e))
                })?;
                file.write_all(&buffer).map_err(|e| failed(&e))?;
                at += buffer.len() as u64;
            }
        }
        Ok(())
    }

    /// Appends all that is under way and closes the pipes.
    pub fn finish(mut self, file: &File) -> Result<()> {
        self.drain(file)?;
        self.close()
    }

    fn close(&mut self) -> Result<()> {
        self.wait()?;
        self.outlet.take().map_or(Ok(()), |outlet| Ok(outlet.close(self.hand)?))
    }
}

impl Drop for Splice<'_> {
    fn drop(&mut self) {
        // Only after an error, which is the one to tell.
        if let Err(e) = self.close() {
            tracing::warn!("closing what was open in process {}: {e}", self.hand.pid());
        }
    }
}
