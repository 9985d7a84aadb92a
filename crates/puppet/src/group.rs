//! Other threads of a hand's process that run batches: several at once, since
//! to wake a thread and wait for it takes longer than what it does.
//!
//! ```text
//!   stopped ──send in──▶ running its batch ──announce──▶ written back, stopped
//! ```
//!
//! A thread that finds nobody there returns through its frame. It counts itself
//! out before that, and the process's own hand, which unmaps the ground under
//! all of them, waits for as many as [`scratch::BUSY`] says.

use crate::batch::{Batch, Place};
use crate::hand::{Context, Hand};
use crate::scratch::{self, slot};
use crate::{Error, Result, arch, stops, trace};

/// A batch for one stopped thread.
#[derive(Debug)]
pub struct Job<'a> {
    /// The thread; not the hand's own.
    pub tid: i32,
    /// What it is put back to.
    pub context: &'a Context,
    /// What it is to run.
    pub batch: &'a mut Batch,
}

/// Words of [`scratch::BUSY`] while `count` other threads are in the mapping.
pub(crate) fn busy(count: usize) -> Vec<u8> {
    (0..scratch::THREADS).flat_map(|n| if n < count { 0i64 } else { -1 }.to_le_bytes()).collect()
}

impl Hand {
    /// Runs each batch in its thread and puts the threads back to where they
    /// were. A call of a batch that failed is an error here, after all have run.
    pub fn run_in_threads(&mut self, jobs: &mut [Job<'_>]) -> Result<()> {
        let mut rest = jobs;
        let mut result = Ok(());
        while !rest.is_empty() {
            let fitting = rest.iter().take(scratch::THREADS).take_while(|job| job.batch.fits(&self.row(0))).count();
            let (now, later) = rest.split_at_mut(fitting.max(1));
            // A batch that is too large for a row has the hand's own place to itself.
            let places: Vec<Place> =
                if fitting == 0 { vec![self.place()] } else { (0..fitting).map(|index| self.row(index)).collect() };
            result = result.and(self.run_group(now, &places));
            rest = later;
        }
        result
    }

    fn run_group(&mut self, jobs: &mut [Job<'_>], places: &[Place]) -> Result<()> {
        self.lay_rows_for(jobs, places)?;
        let mut sent = 0;
        let mut result = Ok(());
        for (index, job) in jobs.iter().enumerate() {
            let row = self.row_at(index);
            result = self
                .send_in(job.tid, &job.context.regs, row + scratch::THREAD_SLOT, row + scratch::THREAD_STACK_TOP - 64)
                .and_then(|()| trace::resume(job.tid, 0));
            if result.is_err() {
                break;
            }
            sent += 1;
        }
        if sent < jobs.len() {
            self.poke(self.base + scratch::BUSY, &busy(sent))?;
        }
        let mut left = Vec::with_capacity(sent);
        for (index, job) in jobs[..sent].iter().enumerate() {
            match self.take_back(job, self.row_at(index) + scratch::THREAD_SLOT) {
                Ok(unreached) => left.push(unreached),
                Err(e) => result = result.and(Err(e)),
            }
            self.one_less_busy(sent - 1 - index)?;
        }
        result?;
        let ran = jobs.iter_mut().zip(places).zip(left);
        self.fetch(&mut ran.map(|((job, place), left)| (&mut *job.batch, *place, left)).collect::<Vec<_>>())?;
        jobs.iter().try_for_each(|job| self.failed(job.batch))
    }

    /// Notes that only so many other threads are left in the mapping. The hand
    /// itself is held, so its memory can be written word by word.
    fn one_less_busy(&self, left: usize) -> Result<()> {
        let at = self.base + scratch::BUSY + (left * size_of::<u64>()) as u64;
        let nobody = u64::MAX;
        trace::poke_data(self.tid, at, nobody).map_err(|errno| Error::Memory { pid: self.pid, at, op: "write", errno })
    }

    /// Waits for a thread and puts it back; returns how many calls it did not reach.
    fn take_back(&mut self, job: &Job<'_>, slot_at: u64) -> Result<u64> {
        let left = self.wait_announcement(job.tid, slot_at)?;
        job.context.write_back(job.tid)?;
        if self.disturbs(job.context.sigmask) {
            stops::move_on(job.tid)?;
        }
        Ok(left)
    }

    fn row_at(&self, index: usize) -> u64 {
        self.base + index as u64 * scratch::THREAD_ROW
    }

    pub(crate) fn row(&self, index: usize) -> Place {
        let row = self.row_at(index);
        Place {
            ops: row + scratch::THREAD_OPS,
            data: row + scratch::THREAD_DATA,
            ops_max: scratch::THREAD_OPS_MAX,
            data_max: scratch::THREAD_DATA_LEN,
        }
    }

    fn lay_rows_for(&self, jobs: &[Job<'_>], places: &[Place]) -> Result<()> {
        // Nobody has left yet, and so many will be there: the hand will wait for them.
        let mut pieces = vec![(self.base + scratch::LEFT, vec![0; 8]), (self.base + scratch::BUSY, busy(jobs.len()))];
        for (index, (job, place)) in jobs.iter().zip(places).enumerate() {
            let row = self.row_at(index);
            let frame = row + scratch::THREAD_FRAME;
            let home = arch::with_call_reissued(&job.context.regs);
            let (ops, data) = self.encode(job.batch, place)?;
            let slot = self.slot(&[
                (slot::OPS, place.ops),
                (slot::COUNT, job.batch.len() as u64),
                (slot::REQUEST, 1),
                (slot::FAREWELL_OPS, self.base + scratch::THREAD_FAREWELL),
                (slot::FAREWELL_COUNT, 1),
                (slot::LEAVE_SP, frame + 8),
                (slot::LEAVE_NR, libc::SYS_rt_sigreturn as u64),
                (slot::LEAVE_IP, self.base + scratch::CODE + arch::syscall_offset()),
            ]);
            let frame_bytes = arch::write_frame(frame, 0, &home, job.context.sigmask, &job.context.xstate);
            pieces.extend([
                (frame, frame_bytes),
                (place.ops, ops),
                (place.data, data),
                (row + scratch::THREAD_SLOT, slot),
            ]);
        }
        let pieces: Vec<(u64, &[u8])> = pieces.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        self.poke_all(&pieces)
    }
}
