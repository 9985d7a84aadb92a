//! Rings of which a single thread may submit (IORING_SETUP_SINGLE_ISSUER, and
//! DEFER_TASKRUN, which rests on it): the thread that enables such a ring is the
//! one for ever. So it is made disabled, and its own thread enables it and runs
//! the requests that bring the indices to where they were.

use super::{RINGS_PARTS, Record, fill_both, json_name};
use crate::files::OpenFile;
use crate::plan::ProcessPlan;
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::{FdTypes, FileEntry};
use cryonaut_kernel::sys::io_uring::{self, Inside, Mapped, PART_MASK, Position};
use cryonaut_puppet::{Batch, Call, Context, Hand, Job};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};

/// IORING_REGISTER_ENABLE_RINGS.
const ENABLE: u32 = 12;
/// Rounds of one batch: with two calls each they fit a thread's row.
const ROUNDS: u32 = 20;

/// The thread that alone may submit; `None` for a ring without one.
pub(super) fn find(file: &OpenFile<'_>, inside: &Inside, position: Position) -> Result<Option<i32>> {
    if !super::has_issuer(inside.flags) {
        return Ok(None);
    }
    let no = |reason: &str| Err(Error::unsupported(file.object(), reason, super::CLOSE));
    if position.silent() < 0 {
        return no(
            "more requests have completed than were submitted, which a ring for a single thread cannot be given",
        );
    }
    for tid in file.task.tids()? {
        let tid = tid.as_raw_nonzero().get();
        match io_uring::task_address(tid, file.fd) {
            Ok(address) if address == inside.issuer => return Ok(Some(tid)),
            // One that has ended has no descriptors.
            Ok(_) | Err(Errno::BADF) => {}
            Err(e) => return Err(super::silent(file, e)),
        }
    }
    no("the thread that alone may submit to it has ended, or is of another process")
}

/// What is at hand when all threads of a process exist.
#[derive(Debug)]
pub struct Start<'a> {
    pub images: &'a ImageDir,
    pub records: &'a BTreeMap<u32, FileEntry>,
    pub built: &'a HashMap<u32, OwnedFd>,
    /// Which processes have which file under which number.
    pub places: &'a HashMap<u32, Vec<(i32, i32)>>,
}

/// Registers a process's rings with its threads, and its memory with its rings, and lets its threads enable theirs, which then get their contents.
pub fn start(hand: &mut Hand, process: &ProcessPlan, cx: &Start<'_>) -> Result<()> {
    let rings: Vec<&FileEntry> = cx.records.values().filter(|entry| entry.r#type == FdTypes::Und as i32).collect();
    if !rings.is_empty() {
        // Before any ring listens to a single thread.
        super::names::build(hand, process, cx.images)?;
    }
    for entry in rings {
        let Some(ring) = cx.built.get(&entry.id) else { continue };
        let record = Record::read(cx.images, entry)?;
        let place = cx.places.get(&entry.id).into_iter().flatten().find(|place| place.0 == process.pid());
        if let Some((_, number)) = place {
            record.registered.pin(hand, *number)?;
        }
        let Some(issuer) = record.issuer.filter(|issuer| process.cores().any(|(tid, _)| tid == *issuer)) else {
            continue;
        };
        let (_, fd) =
            *place.ok_or_else(|| Error::bad_image(json_name(entry.id), format!("thread {issuer} has it not")))?;
        let failed = |e| Error::kernel(Object::File(entry.id, "io_uring".into()), "map its rings", e);
        let mapped = Mapped::new(ring.as_fd(), record.layout()).map_err(failed)?;
        mapped.hush();
        let mut turn = Turn { hand: &mut *hand, issuer, context: Context::read(issuer)?, fd, mapped: &mapped };
        turn.enable()?;
        if record.poller.is_some() {
            let failed = |e| Error::kernel(Object::Thread(issuer), "bring its io_uring to where it was", e);
            mapped.turn(ring.as_fd(), record.position()).map_err(failed)?;
        } else {
            turn.all(record.position(), head_in(process, entry.id, &mapped))?;
        }
        fill_both(entry.id, &record, &mapped)?;
    }
    Ok(())
}

/// The address in a process of the index of what has been collected, if it has the rings mapped for writing.
fn head_in(process: &ProcessPlan, id: u32, mapped: &Mapped) -> Option<u64> {
    let vmas = &process.mm.as_ref()?.vmas;
    let of_ring = |vma: &&cryonaut_image::records::VmaEntry| {
        vma.status & crate::memory::status::FILE_SHARED != 0
            && vma.shmid == u64::from(id)
            && RINGS_PARTS.contains(&(vma.pgoff & PART_MASK))
            && vma.prot & libc::PROT_WRITE as u32 != 0
    };
    vmas.iter().find(of_ring).map(|vma| vma.start + mapped.layout.cq_head() as u64)
}

struct Turn<'a> {
    hand: &'a mut Hand,
    issuer: i32,
    context: Context,
    fd: i32,
    mapped: &'a Mapped,
}

impl Turn<'_> {
    fn enable(&mut self) -> Result<()> {
        let mut b = Batch::new();
        b.call(libc::SYS_io_uring_register, [self.fd.into(), ENABLE.into(), 0.into(), 0.into()]);
        self.run(&mut b)
    }

    fn all(&mut self, position: Position, head_at: Option<u64>) -> Result<()> {
        let some = self.mapped.layout.sq_entries;
        self.mapped.number();
        let mut left = position.both();
        if let Some(at) = head_at {
            // As many rounds as are collected in full: the thread does that itself.
            let mut rounds = left.min(position.collected) / some;
            left -= rounds * some;
            while rounds > 0 {
                let now = rounds.min(ROUNDS);
                self.rounds(now, some, Some(at))?;
                rounds -= now;
            }
        }
        while left > 0 {
            let now = left.min(some);
            self.rounds(1, now, None)?;
            self.mapped.collect(position.collected);
            left -= now;
        }
        self.mapped.silence(true);
        let mut left = u32::try_from(position.silent()).unwrap_or(0);
        while left > 0 {
            let now = left.min(some);
            let rounds = (left / now).min(ROUNDS);
            self.rounds(rounds, now, None)?;
            left -= rounds * now;
        }
        if self.mapped.completed() == position.completed { Ok(()) } else { Err(self.stuck()) }
    }

    /// Several times so many requests; after each, the index at `head_at` is advanced by as many, a power of two.
    fn rounds(&mut self, rounds: u32, count: u32, head_at: Option<u64>) -> Result<()> {
        self.mapped.offer(rounds * count);
        let mut b = Batch::new();
        let mut taken: Vec<Call> = Vec::new();
        for _ in 0..rounds {
            taken.push(b.call(
                libc::SYS_io_uring_enter,
                [self.fd.into(), count.into(), 0.into(), 0.into(), 0.into(), 0.into()],
            ));
            if let Some(at) = head_at {
                add_power(&mut b, at, count.trailing_zeros());
            }
        }
        self.run(&mut b)?;
        if taken.iter().all(|call| b.result(*call) == Ok(u64::from(count))) { Ok(()) } else { Err(self.stuck()) }
    }

    fn stuck(&self) -> Error {
        Error::kernel(Object::Thread(self.issuer), "bring the indices of its io_uring to where they were", Errno::AGAIN)
    }

    fn run(&mut self, b: &mut Batch) -> Result<()> {
        if self.hand.tid() == self.issuer {
            return Ok(self.hand.run(b)?);
        }
        let mut job = [Job { tid: self.issuer, context: &self.context, batch: b }];
        Ok(self.hand.run_in_threads(&mut job)?)
    }
}

/// Adds a power of two to a word of the process: futex(2) does it by the way, and wakes nobody.
fn add_power(b: &mut Batch, at: u64, power: u32) {
    const FUTEX_OP_ADD: u32 = 1;
    const FUTEX_OP_OPARG_SHIFT: u32 = 8;
    let how = (FUTEX_OP_ADD | FUTEX_OP_OPARG_SHIFT) << 28 | power << 12;
    let command = libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG;
    b.call(libc::SYS_futex, [at.into(), command.into(), 0.into(), 0.into(), at.into(), how.into()]);
}
