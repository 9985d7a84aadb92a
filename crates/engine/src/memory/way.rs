//! How many pages leave a process without coming by us: it writes them into their file itself, where it may, or hands them
//! over through pipes.
//!
//! Between batches a hand must be where its farewell would close what is open
//! for it; and its filters must not mind, should we die, the calls that are
//! left: those of a batch may fail then, those of the farewell may not.

use super::direct::{self, Direct};
use super::frozen_memory::FrozenMemory;
use super::ranges::Range;
use super::splice::Splice;
use super::write_behind::WriteBehind;
use crate::Result;
use crate::attributes::filter;
use crate::freeze::Process;
use cryonaut_puppet::memory::Remote;
use cryonaut_puppet::{Hand, Outlet, Writer, farewell_calls};
use std::fs::File;
use std::os::fd::AsFd;

/// Bytes of pages from which on a way is worth to be opened.
pub const WORTH_IT: u64 = 8 << 20;

/// The way.
#[derive(Debug)]
pub(super) enum Way<'a> {
    Direct(Direct<'a>),
    Splice(Splice<'a>),
}

impl<'a> Way<'a> {
    /// Opens one into `file`, if the process can serve: `mem` is its /proc/PID/mem, and `alone` whether no other process
    /// is in the tree.
    pub fn open(
        process: &Process,
        hand: &'a mut Hand,
        mem: &File,
        alone: bool,
        file: &mut WriteBehind,
    ) -> Result<Option<Self>> {
        let (tid, mode) = (hand.tid(), process.status.seccomp);
        let Ok(mem) = mem.try_clone() else { return Ok(None) };
        if !filter::permits(tid, mode, &farewell_calls()) {
            return Ok(None);
        }
        let memory = FrozenMemory::new(process.pid, mem);
        let no =
            |e: &cryonaut_puppet::Error| tracing::debug!("memory of process {} goes another way: {e}", process.pid);
        let may_write = alone && file.is_regular() && direct::counts_as_ours(&process.task);
        if may_write
            && filter::tolerates(tid, mode, &Writer::calls())
            && let Ok(writer) = Writer::open(hand, file.file().as_fd()).inspect_err(no)
        {
            let direct = Direct::new(hand, memory, writer);
            file.stay_direct()?;
            return Ok(Some(Way::Direct(direct)));
        }
        if !filter::tolerates(tid, mode, &Outlet::calls()) {
            return Ok(None);
        }
        let outlet = Outlet::open(hand).inspect_err(no).ok();
        Ok(outlet.map(|outlet| Way::Splice(Splice::new(hand, memory, outlet))))
    }

    /// Bytes that [`Way::push`] takes at most when the file is so long.
    pub fn room(&self, position: u64) -> usize {
        match self {
            Way::Direct(_) => direct::AT_ONCE,
            Way::Splice(splice) => splice.room(position),
        }
    }

    /// Pages of zeros among these, which ascend: not all if the process may not read them all.
    pub fn zeros(&mut self, ranges: &[Range]) -> Result<Vec<Range>> {
        match self {
            Way::Direct(direct) => direct.zeros(ranges),
            Way::Splice(splice) => splice.zeros(ranges),
        }
    }

    /// Appends pages of the process to the file, now or a little later.
    pub fn push(&mut self, spans: &[Remote], file: &mut WriteBehind) -> Result<()> {
        match self {
            Way::Direct(direct) => direct.push(spans, file),
            Way::Splice(splice) => splice.push(spans, file),
        }
    }

    /// Has what was pushed come before what is appended to the file from now on.
    pub fn settle(&mut self, file: &WriteBehind) -> Result<()> {
        match self {
            Way::Direct(direct) => direct.settle(file),
            // The file's thread does one thing after the other.
            Way::Splice(_) => Ok(()),
        }
    }

    /// Closes what the process has open for it. What is on its way still goes into the file.
    pub fn close(self, file: &WriteBehind) -> Result<()> {
        match self {
            Way::Direct(direct) => direct.close(file),
            Way::Splice(splice) => splice.close(),
        }
    }
}
