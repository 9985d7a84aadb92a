//! The last moment of a restore: the threads of a built process wait for the
//! verdict, each with its own way home, so that from the verdict on they need
//! nobody.
//!
//! A parked thread stands in the trampoline, as one that has just found itself
//! alone. As long as somebody traces it, it stands there stopped. Let go, it
//! looks at the verdict: it ends its process, or returns through a signal frame
//! to what it is to do. The hand, which is the last to leave, also unmaps all.
//!
//! Rows, one for each thread but the hand's, lie in a mapping of their own: a
//! slot, the frame, and a stack for a handler, should a signal come in between.

use crate::hand::{Context, Doorway, Hand};
use crate::scratch::{self, op, slot};
use crate::{Arg, Batch, Result, arch, farewell, stops, trace};

/// Distance of two rows.
const ROW: u64 = 0x4000;
/// Where the frame stands in a row.
const FRAME: u64 = 0x80;
const _: () = assert!(slot::SIZE <= FRAME as usize);

/// How many farewell operations fit where the data of batches were.
const FAREWELLS: usize = scratch::DATA_LEN / op::SIZE;
/// A count of leavers that nobody waits for.
const ALL_HAVE_LEFT: u32 = 0x7fff_ffff;

/// Where a built process's threads return to.
#[derive(Debug)]
pub struct Homes {
    /// Of the thread that the hand is.
    pub own: Context,
    /// Of the other threads, by tid.
    pub others: Vec<(i32, Context)>,
}

impl Hand {
    /// Parks all threads of a built process. The hand's own way home leads
    /// through `door`; with seccomp filters (`filtered`) it leaves the mappings
    /// where they are, since its filters might not let it unmap them.
    pub fn park(&mut self, door: &Doorway, homes: &Homes, filtered: bool) -> Result<()> {
        let len = homes.others.len() as u64 * ROW;
        // Also for no rows: from here on the hand stands in the trampoline, having run what was asked.
        let rows = self.map_rows(len)?;
        if len > 0 {
            self.rows = Some((rows, len));
            self.lay_rows(rows, homes, filtered)?;
        }
        self.lay_own(door, &homes.own, filtered)?;
        // What a signal frame does not restore: the bases of segments, and the selectors of data.
        let mut regs = trace::registers(self.tid)?;
        let own = &homes.own.regs;
        (regs.fs_base, regs.gs_base) = (own.fs_base, own.gs_base);
        (regs.ds, regs.es, regs.fs, regs.gs) = (own.ds, own.es, own.fs, own.gs);
        self.set_regs(&regs)?;
        for (index, (tid, context)) in homes.others.iter().enumerate() {
            let row = rows + index as u64 * ROW;
            let ip = self.base + scratch::CODE + arch::alone_offset();
            let regs = arch::for_trampoline(&context.regs, ip, row, row + ROW - 64);
            trace::set_registers(*tid, &regs)?;
        }
        Ok(())
    }

    fn map_rows(&mut self, len: u64) -> Result<u64> {
        let mut b = Batch::new();
        if len == 0 {
            self.run(&mut b)?;
            return Ok(0);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map =
            b.call(libc::SYS_mmap, [0.into(), len.into(), prot.into(), flags.into(), Arg::Val(u64::MAX), 0.into()]);
        self.run(&mut b)?;
        b.result(map).map_err(|errno| crate::Error::Scratch { pid: self.pid, errno })
    }

    fn lay_rows(&self, rows: u64, homes: &Homes, filtered: bool) -> Result<()> {
        let laid: Vec<(u64, Vec<u8>)> = homes
            .others
            .iter()
            .enumerate()
            .map(|(index, (_, context))| {
                let row = rows + index as u64 * ROW;
                let frame = row + FRAME;
                let mut bytes = self.slot(&[
                    (slot::VERDICT, self.base + scratch::VERDICT),
                    (slot::FAREWELL_OPS, self.base + scratch::THREAD_FAREWELL),
                    (slot::FAREWELL_COUNT, u64::from(!filtered)),
                    (slot::LEAVE_SP, frame + 8),
                    (slot::LEAVE_NR, libc::SYS_rt_sigreturn as u64),
                    (slot::LEAVE_IP, self.base + scratch::CODE + arch::syscall_offset()),
                ]);
                bytes.resize(FRAME as usize, 0);
                let home = arch::with_call_reissued(&context.regs);
                bytes.extend(arch::write_frame(frame, 0, &home, context.sigmask, &context.xstate));
                (row, bytes)
            })
            .collect();
        let pieces: Vec<(u64, &[u8])> = laid.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        self.poke_all(&pieces)
    }

    /// The hand's own way home.
    fn lay_own(&mut self, door: &Doorway, home: &Context, filtered: bool) -> Result<()> {
        let at = |offset: u64| self.base + offset;
        let mut fields = vec![
            (slot::REQUEST, self.requests),
            (slot::DONE, self.requests),
            (slot::OPS, at(scratch::OPS)),
            (slot::VERDICT, at(scratch::VERDICT)),
            (slot::FAREWELL_OPS, at(scratch::DATA)),
        ];
        let (back, farewells) = if filtered {
            let back = at(scratch::THREAD_FRAME);
            let ip = at(scratch::CODE) + arch::syscall_offset();
            fields.extend([
                (slot::LEAVE_SP, back + 8),
                (slot::LEAVE_NR, libc::SYS_rt_sigreturn as u64),
                (slot::LEAVE_IP, ip),
            ]);
            (back, Vec::new())
        } else {
            fields.extend([
                (slot::LEAVE_SP, door.home()),
                (slot::LEAVE_ARG0, self.base),
                (slot::LEAVE_ARG1, self.len),
                (slot::LEAVE_NR, libc::SYS_munmap as u64),
                (slot::LEAVE_IP, door.gadgets.syscall),
            ]);
            (door.home(), self.wait_and_unmap())
        };
        fields.push((slot::FAREWELL_COUNT, (farewells.len() / op::SIZE) as u64));
        let xstate: &[u8] = if door.roomy || filtered { &home.xstate } else { &[] };
        let regs = arch::with_call_reissued(&home.regs);
        let frame = arch::write_frame(back, door.gadgets.sigreturn, &regs, home.sigmask, xstate);
        self.frame = (!filtered).then_some((back, frame.len()));
        let count = self.rows.map_or(0, |(_, len)| len / ROW);
        let words = farewell::times(farewell::GRACE_OF_ONE + count * farewell::GRACE_OF_EACH);
        let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.poke_all(&[
            (back, &frame),
            (self.rows_are_gone(), &[0; 8]),
            (at(scratch::DATA), &farewells),
            (at(scratch::LEFT), &words),
            (at(scratch::SLOT), &self.slot(&fields)),
        ])
    }

    /// Waits for each count in turn, so that no thread is missed.
    fn wait_and_unmap(&self) -> Vec<u8> {
        let Some((rows, len)) = self.rows else { return Vec::new() };
        let count = len / ROW;
        let waited = if (count as usize) < FAREWELLS - 2 { count } else { 0 };
        let gone = self.rows_are_gone();
        let mut all: Vec<u8> = (0..waited).flat_map(|n| farewell::wait_for_leaver(self.base, n, gone)).collect();
        all.extend(farewell::grace(self.base, gone));
        all.extend(farewell::operation(libc::SYS_munmap, [rows, len, 0, 0, 0, 0], 0, gone));
        all
    }

    /// Address of a word that is negative once [`Hand::clear_rows`] has run:
    /// the result of its second call, which fails.
    fn rows_are_gone(&self) -> u64 {
        self.base + scratch::OPS + (op::SIZE + op::RESULT) as u64
    }

    /// Unmaps the rows, once none of the other threads is in them any more.
    pub fn clear_rows(&mut self) -> Result<()> {
        let Some((at, len)) = self.rows.take() else { return Ok(()) };
        self.poke(self.base + scratch::LEFT, &ALL_HAVE_LEFT.to_le_bytes())?;
        let mut b = Batch::new();
        b.call(libc::SYS_munmap, [at.into(), len.into()]);
        b.attempt(libc::SYS_close, [Arg::Val(u64::MAX)]);
        self.run(&mut b)
    }

    /// Begins to unmap the scratch mapping through the door. Many may be on their way at once; each is to be let
    /// [on](Hand::strip_on), and waited for.
    pub fn begin_strip(&mut self, door: &Doorway) -> Result<()> {
        let base = trace::registers(self.tid)?;
        self.serving = false;
        let unmap = [self.base, self.len, 0, 0, 0, 0];
        let nr = libc::SYS_munmap as u64;
        self.set_regs(&arch::for_call(&base, door.gadgets.syscall, door.home(), nr, unmap))?;
        trace::resume_to_syscall(self.tid)
    }

    /// Waits until it is about to unmap, and lets it.
    pub fn strip_on(&self) -> Result<()> {
        stops::enter_call(self.tid)
    }

    /// Waits until it has, which leaves the hand stopped behind that; its registers are the caller's to set.
    pub fn end_strip(&self) -> Result<()> {
        match stops::leave_call(self.tid)? {
            0 => Ok(()),
            got => {
                let errno = rustix::io::Errno::from_raw_os_error(-got as i32);
                Err(crate::Error::Scratch { pid: self.pid, errno })
            }
        }
    }

    /// Wipes the frame of a stripped hand that has its registers, so that whoever
    /// comes next sees that nobody needs it any more.
    pub fn wipe_frame(&mut self) -> Result<()> {
        self.frame.take().map_or(Ok(()), |(at, len)| self.poke(at, &vec![0; len]))
    }
}
