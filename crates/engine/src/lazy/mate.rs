//! The filler's second thread, its *mate*: fills what nobody waits for, from the other end, where two processors are free.
//!
//! It is given orders, and knows nothing of what the program does meanwhile. What it puts in place must not be where
//! something else is by then: the kernel fills nothing while a change is not told, but does so again as soon as that has been
//! read. So it puts nothing in place while events are read: it for each piece, and who reads for each read, pass a *gate*.
//! When what was read has changed anything, or a userfaultfd is about to be closed, all orders are void, and what was filled
//! by them is not counted: it is found there.
//!
//! Who is killed takes it along; whoever takes over makes another.

use super::filler::Filler;
use super::missing::Part;
use super::placing::{Outcome, place};
use super::source::Source;
use super::space::Space;
use cryonaut_kernel::Errno;
use cryonaut_kernel::uffd::{CopyMode, Uffd};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// Bytes that are missing at least where it is made.
const LEAST: u64 = 4 << 20;
/// Bytes that are put in place at once: as long as who wants to read then waits.
const PIECE: u64 = 32 << 10;
/// Bytes of an order.
const ORDER: u64 = 1 << 20;
/// Orders that are given ahead, so that it never waits for one.
const AHEAD: usize = 2;
/// How often is looked whether the gate is free before who wants to pass it sleeps: longer than a piece takes.
const LOOKS: u32 = 2000;
/// Bytes of its stack.
const STACK: usize = 64 << 10;

/// The gate. What it guards is how often all orders became void.
#[derive(Debug, Default)]
struct Gate {
    voided: Mutex<u64>,
    /// Who reads is waiting: the mate lets it pass.
    is_wanted: AtomicBool,
}

impl Gate {
    fn pass(&self) -> MutexGuard<'_, u64> {
        for _ in 0..LOOKS {
            match self.voided.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        self.voided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the mate: after who reads.
    fn pass_after(&self) -> MutexGuard<'_, u64> {
        let mut looks = 0;
        while self.is_wanted.load(Ordering::Acquire) {
            looks += 1;
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.pass()
    }
}

/// The gate, held: the mate puts nothing in place.
#[derive(Debug)]
pub struct Held<'a> {
    mate: &'a Mate,
    voided: MutexGuard<'a, u64>,
}

impl Held<'_> {
    /// All orders are void from now on, for whatever of these address spaces.
    pub fn void(&mut self, spaces: &mut [Space]) {
        spaces.iter_mut().for_each(|space| space.ordered = u64::MAX);
        *self.voided += 1;
        self.mate.voided.set(*self.voided);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.mate.gate.is_wanted.store(false, Ordering::Release);
    }
}

/// Parts of one address space that are to be filled, of one pages file.
#[derive(Debug)]
struct Order {
    /// Which address space, for who gave the order.
    space: usize,
    uffd: Arc<Uffd>,
    source: Arc<File>,
    parts: Vec<Part>,
}

/// What has come of an order.
#[derive(Debug)]
struct Filled {
    space: usize,
    voided: u64,
    parts: Vec<Part>,
}

/// The thread, for who gives it orders.
#[derive(Debug)]
pub struct Mate {
    gate: Arc<Gate>,
    orders: Sender<(u64, Order)>,
    filled: Receiver<Filled>,
    thread: JoinHandle<()>,
    /// Orders of which is not known what has come.
    under_way: usize,
    /// How often all became void.
    voided: Cell<u64>,
}

impl Mate {
    /// One that waits for orders. Fails when no thread can be had.
    fn new() -> std::io::Result<Mate> {
        let gate = Arc::<Gate>::default();
        let (orders, to_do) = channel();
        let (done, filled) = channel();
        let its_gate = Arc::clone(&gate);
        let work = move || fill(&its_gate, &to_do, &done);
        let thread = std::thread::Builder::new().name("mate".into()).stack_size(STACK).spawn(work)?;
        Ok(Mate { gate, orders, filled, thread, under_way: 0, voided: Cell::default() })
    }

    /// Waits until it puts nothing in place.
    pub fn hold(&self) -> Held<'_> {
        self.gate.is_wanted.store(true, Ordering::Release);
        Held { mate: self, voided: self.gate.pass() }
    }

    /// Whether it should get another order.
    fn wants_more(&self) -> bool {
        self.under_way < AHEAD
    }

    /// Gives it one.
    fn give(&mut self, order: Order) {
        // Fails only if it has ended, by a bug of ours: then nothing comes of it.
        self.under_way += usize::from(self.orders.send((self.voided.get(), order)).is_ok());
    }

    /// What it has filled since it was last asked, of which address space; not what is void.
    fn take_filled(&mut self) -> Vec<(usize, Vec<Part>)> {
        let told: Vec<Filled> = self.filled.try_iter().collect();
        self.under_way -= told.len();
        told.into_iter().filter(|one| one.voided == self.voided.get()).map(|one| (one.space, one.parts)).collect()
    }

    /// Ends it: this process has one thread less.
    fn end(self) {
        self.hold().void(&mut []);
        drop(self.orders);
        // Fails only if it has panicked.
        let _ = self.thread.join();
    }
}

impl Filler {
    /// Has the mate do what it can: counts what it has filled, and gives it more.
    pub(super) fn employ_mate(&mut self) {
        if self.mate.is_none() && self.is_worth_a_mate() {
            self.mate = Mate::new().ok();
            self.spaces.iter_mut().for_each(|space| space.ordered = u64::MAX);
        }
        let Some(mate) = &mut self.mate else { return };
        for (index, parts) in mate.take_filled() {
            parts.iter().for_each(|part| drop(self.spaces[index].missing.remove(part.start, part.end())));
        }
        while mate.wants_more() {
            let Some(order) = next_order(&mut self.spaces, &self.sources) else { break };
            mate.give(order);
        }
    }

    /// Before this process is copied, and at the end.
    pub(super) fn dismiss_mate(&mut self) {
        self.mate.take().into_iter().for_each(Mate::end);
    }

    fn is_worth_a_mate(&self) -> bool {
        !self.has_given_up && self.spaces.iter().any(|space| space.missing.has_at_least(LEAST))
    }
}

/// What is to be filled next, from the last address of the last space down.
fn next_order(spaces: &mut [Space], sources: &[Box<dyn Source>]) -> Option<Order> {
    for (index, space) in spaces.iter_mut().enumerate().rev() {
        let (mut parts, mut bytes) = (Vec::<Part>::new(), 0);
        while bytes < ORDER {
            let Some(part) = space.missing.before(space.ordered, ORDER - bytes) else { break };
            if parts.first().is_some_and(|first| first.source != part.source) {
                break;
            }
            space.ordered = part.start;
            if sources[part.source as usize].file().is_some() {
                bytes += part.len;
                parts.push(part);
            }
        }
        let source = parts.first().and_then(|first| sources[first.source as usize].file());
        if let Some(source) = source.cloned() {
            return Some(Order { space: index, uffd: Arc::clone(&space.uffd), source, parts });
        }
    }
    None
}

/// The life of the thread.
fn fill(gate: &Gate, orders: &Receiver<(u64, Order)>, done: &Sender<Filled>) {
    let mut room = vec![0; PIECE as usize];
    while let Ok((voided, order)) = orders.recv() {
        let mut parts = Vec::new();
        for part in order.parts.iter().flat_map(pieces) {
            match fill_piece(gate, voided, &order, part, &mut room) {
                Some(Outcome::Done) => parts.push(part),
                // Who gave the order sees why.
                _ => break,
            }
        }
        let space = order.space;
        // The last who refers to a userfaultfd closes it.
        drop(order);
        if done.send(Filled { space, voided, parts }).is_err() {
            break;
        }
    }
}

/// `None` if it is void or cannot be read.
fn fill_piece(gate: &Gate, voided: u64, order: &Order, part: Part, room: &mut [u8]) -> Option<Outcome> {
    let room = &mut room[..part.len as usize];
    order.source.read_exact_at(room, part.offset).ok()?;
    let copy = |uffd: &Uffd, at, from: usize, len| -> Result<usize, Errno> {
        let now = gate.pass_after();
        if *now == voided { uffd.copy(at, &room[from..from + len], CopyMode::empty()) } else { Err(Errno::AGAIN) }
    };
    Some(place(&order.uffd, part, copy, |_| {}))
}

/// A part by pieces.
fn pieces(part: &Part) -> impl Iterator<Item = Part> + use<'_> {
    let starts = (part.start..part.end()).step_by(PIECE as usize);
    starts.filter_map(|start| part.clip(start, start.saturating_add(PIECE)))
}
