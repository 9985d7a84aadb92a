//! What a hand is to do in a restore, gathered so that it is woken once for
//! much; and several hands at work at a time: to wake one and wait for it takes
//! longer than most of what it is to do.

use super::Nursery;
use crate::{Error, Result};
use cryonaut_puppet::passing::{LANES, Received, Service};
use cryonaut_puppet::{Arg, Batch, Call, Hand, scratch};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

/// Calls with which a batch is run before there are more.
const FULL: usize = 200;
/// The same for the bytes of their data.
const FULL_DATA: usize = scratch::DATA_LEN / 2;

/// A hand, and what it is to do next.
#[derive(Debug)]
pub struct Work<'h> {
    /// The hand. Whoever has it run something itself sees to it that it has [done](Work::flush) what it is to do before.
    pub hand: &'h mut Hand,
    /// What it gets files over.
    pub service: &'h Service,
    /// Calls that it has not made yet.
    pub batch: Batch,
    lane: usize,
    gifts: Vec<Given>,
    reads: Reads,
}

/// Files that a hand gets; see [`Work::number`].
#[derive(Debug, Clone, Copy)]
pub struct Gift(usize);

#[derive(Debug)]
enum Given {
    /// By the batch that has not run yet.
    Now(Received),
    /// Under these numbers.
    Before(Vec<i32>),
}

/// Calls that read pages, and how many bytes each has to have read.
type Reads = Vec<(Call, u64)>;

impl<'h> Work<'h> {
    /// Of a hand that works alone. It is to be [done](Work::flush) before it goes.
    pub fn new(hand: &'h mut Hand, service: &'h Service) -> Self {
        Self::on_lane(hand, service, 0)
    }

    fn on_lane(hand: &'h mut Hand, service: &'h Service, lane: usize) -> Self {
        Work { hand, service, batch: Batch::new(), lane, gifts: Vec::new(), reads: Vec::new() }
    }

    /// Gives the hand files, which it has from the next call on.
    pub fn give(&mut self, files: &[BorrowedFd<'_>]) -> Result<Gift> {
        self.spill()?;
        let given = match self.service.give_in(&mut self.batch, self.lane, files)? {
            Some(received) => Given::Now(received),
            None => {
                self.flush()?;
                Given::Before(self.service.give(self.hand, files)?)
            }
        };
        self.gifts.push(given);
        Ok(Gift(self.gifts.len() - 1))
    }

    /// The number of a file that the hand was given, for the next call.
    #[must_use]
    pub fn number(&self, gift: Gift, index: usize) -> Arg {
        match &self.gifts[gift.0] {
            Given::Now(received) => received.arg(index),
            Given::Before(numbers) => numbers[index].into(),
        }
    }

    /// Takes note that a call of the batch reads pages: so many bytes.
    pub fn reads(&mut self, call: Call, bytes: u64) {
        self.reads.push((call, bytes));
    }

    /// Runs what there is if it is much.
    pub fn spill(&mut self) -> Result<()> {
        if self.batch.len() >= FULL || self.batch.data_len() >= FULL_DATA { self.flush() } else { Ok(()) }
    }

    /// Runs what there is.
    pub fn flush(&mut self) -> Result<()> {
        self.hand.run(&mut self.batch)?;
        check_reads(self.hand.pid(), &self.batch, &self.reads)?;
        for given in &mut self.gifts {
            if let Given::Now(received) = given {
                *given = Given::Before(received.numbers(&self.batch));
            }
        }
        (self.batch, self.reads) = (Batch::new(), Vec::new());
        Ok(())
    }
}

fn check_reads(pid: i32, batch: &Batch, reads: &Reads) -> Result<()> {
    for (call, bytes) in reads {
        let got = batch.result(*call).unwrap_or(0);
        if got != *bytes {
            let problem = format!("{bytes} bytes of pages do not fit its mappings ({got} were taken)");
            return Err(Error::bad_image(format!("pagemap-{pid}.img"), problem));
        }
    }
    Ok(())
}

/// The hands that are at work.
#[derive(Debug, Default)]
pub struct AtWork {
    running: VecDeque<Running>,
}

#[derive(Debug)]
struct Running {
    pid: i32,
    batch: Batch,
    lane: usize,
    reads: Reads,
}

impl AtWork {
    /// What a hand is to do beside those that are at work.
    pub fn add<'h>(&mut self, nursery: &'h mut Nursery<'_>, pid: i32, service: &'h Service) -> Result<Work<'h>> {
        // The first lane is that of those who work alone.
        let is_free = |lane: &usize| self.running.iter().all(|one| one.lane != *lane);
        let lane = match (1..LANES).find(is_free) {
            Some(lane) => lane,
            None => self.wait(nursery)?,
        };
        Ok(Work::on_lane(nursery.hand(pid)?, service, lane))
    }

    /// Has a hand do what it is to do.
    pub fn start(&mut self, work: Work<'_>) -> Result<()> {
        let Work { hand, batch, lane, reads, .. } = work;
        if !batch.is_empty() {
            hand.start(&batch)?;
            self.running.push_back(Running { pid: hand.pid(), batch, lane, reads });
        }
        Ok(())
    }

    /// Waits for who has begun first; the lane that is free now.
    fn wait(&mut self, nursery: &mut Nursery<'_>) -> Result<usize> {
        let Some(Running { pid, mut batch, lane, reads }) = self.running.pop_front() else { return Ok(1) };
        nursery.hand(pid)?.wait(&mut batch)?;
        check_reads(pid, &batch, &reads)?;
        Ok(lane)
    }

    /// Waits for all.
    pub fn finish(&mut self, nursery: &mut Nursery<'_>) -> Result<()> {
        while !self.running.is_empty() {
            self.wait(nursery)?;
        }
        Ok(())
    }
}
