//! Rings of io_uring(7), as far as one is looked at or made from outside.

pub mod poller;
pub mod tables;

use super::bpf_iter::{self, Base, Field};
use super::btf::Btf;
use super::check;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// `IORING_SETUP_*` (linux/io_uring.h).
pub mod setup {
    pub const IOPOLL: u32 = 1 << 0;
    pub const SQPOLL: u32 = 1 << 1;
    pub const SQ_AFF: u32 = 1 << 2;
    pub const CQSIZE: u32 = 1 << 3;
    pub const CLAMP: u32 = 1 << 4;
    pub const ATTACH_WQ: u32 = 1 << 5;
    pub const R_DISABLED: u32 = 1 << 6;
    pub const SUBMIT_ALL: u32 = 1 << 7;
    pub const COOP_TASKRUN: u32 = 1 << 8;
    pub const TASKRUN_FLAG: u32 = 1 << 9;
    pub const SQE128: u32 = 1 << 10;
    pub const CQE32: u32 = 1 << 11;
    pub const SINGLE_ISSUER: u32 = 1 << 12;
    pub const DEFER_TASKRUN: u32 = 1 << 13;
    pub const NO_MMAP: u32 = 1 << 14;
    pub const NO_SQARRAY: u32 = 1 << 16;
    pub const CQE_MIXED: u32 = 1 << 18;
}

/// IORING_OFF_SQ_RING and IORING_OFF_SQES: where in the file the rings, and the submission queue's entries, are.
pub const RINGS_OFFSET: u64 = 0;
pub const ENTRIES_OFFSET: u64 = 0x1000_0000;
/// The bits of an offset that say which part is mapped.
pub const PART_MASK: u64 = 0xf800_0000;

const FEAT_SINGLE_MMAP: u32 = 1;
/// IOSQE_CQE_SKIP_SUCCESS, a flag of an entry, and where those stand in it.
const SKIP_SUCCESS: u8 = 1 << 6;
const SQE_FLAGS: usize = 1;

/// Words of struct io_uring_params before the offsets, and of the offsets of each queue.
const PARAMS_HEAD: usize = 10;
const OFFSETS: usize = 10;

/// Where the parts of the mapped rings are: the offsets of both queues in struct io_uring_params, ten words each.
pub type Offsets = [u32; 2 * OFFSETS];

/// What a ring is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Entries of the submission queue; a power of two.
    pub sq_entries: u32,
    /// Entries of the completion queue; a power of two.
    pub cq_entries: u32,
    /// `setup::*`.
    pub flags: u32,
    /// As the kernel told them.
    pub offsets: Offsets,
}

impl Layout {
    fn at(&self, word: usize) -> usize {
        self.offsets[word] as usize
    }

    fn sq_tail(&self) -> usize {
        self.at(1)
    }

    fn array(&self) -> Option<usize> {
        (self.flags & setup::NO_SQARRAY == 0).then(|| self.at(6))
    }

    /// Where the index is of what has been collected.
    #[must_use]
    pub fn cq_head(&self) -> usize {
        self.at(OFFSETS)
    }

    fn cq_tail(&self) -> usize {
        self.at(OFFSETS + 1)
    }

    fn cq_flags(&self) -> usize {
        self.at(OFFSETS + 6)
    }

    fn entry_len(&self) -> usize {
        if self.flags & setup::SQE128 != 0 { 128 } else { 64 }
    }

    /// Bytes of the rings, in whole pages.
    #[must_use]
    pub fn rings_len(&self) -> usize {
        let completion = if self.flags & setup::CQE32 != 0 { 32 } else { 16 };
        let completions = self.at(OFFSETS + 5) + completion * self.cq_entries as usize;
        let array = self.array().map_or(0, |at| at + 4 * self.sq_entries as usize);
        completions.max(array).next_multiple_of(4096)
    }

    /// Bytes of the submission queue's entries, in whole pages.
    #[must_use]
    pub fn entries_len(&self) -> usize {
        (self.entry_len() * self.sq_entries as usize).next_multiple_of(4096)
    }
}

/// A new ring with queues of so many entries, powers of two; and its layout.
pub fn make(sq_entries: u32, cq_entries: u32, flags: u32) -> Result<(OwnedFd, Layout), Errno> {
    make_by(&mut Params::new(cq_entries, flags), sq_entries)
}

/// The same with all that can be asked for.
pub fn make_by(params: &mut Params, sq_entries: u32) -> Result<(OwnedFd, Layout), Errno> {
    let asked = params.clone();
    // SAFETY: io_uring_setup reads and writes one struct io_uring_params, which `Params` is.
    let answer = unsafe { libc::syscall(libc::SYS_io_uring_setup, sq_entries, params.0.as_mut_ptr()) };
    // SAFETY: a descriptor that the kernel has just made for us.
    let file = unsafe { OwnedFd::from_raw_fd(check(answer)? as i32) };
    Ok((file, params.layout(sq_entries, &asked)?))
}

/// What a ring is to be like, and what the kernel tells when it has made it: struct io_uring_params, as words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params(pub [u32; PARAMS_HEAD + 2 * OFFSETS]);

impl Params {
    /// For a ring with a completion queue of so many entries.
    #[must_use]
    pub fn new(cq_entries: u32, flags: u32) -> Self {
        let mut words = [0; PARAMS_HEAD + 2 * OFFSETS];
        words[1] = cq_entries;
        words[2] = flags | setup::CQSIZE;
        Params(words)
    }

    /// With a thread of the kernel that sleeps after so many milliseconds and keeps to a processor (`setup::SQ_AFF`).
    #[must_use]
    pub fn polled(mut self, cpu: u32, idle_ms: u32) -> Self {
        (self.0[3], self.0[4]) = (if self.0[2] & setup::SQ_AFF != 0 { cpu } else { 0 }, idle_ms);
        self
    }

    /// The layout that the kernel has told. ENOTSUP if it is not as it was asked for.
    pub fn layout(&self, sq_entries: u32, asked: &Self) -> Result<Layout, Errno> {
        let words = &self.0;
        let (cq_entries, flags) = (asked.0[1], asked.0[2] & !setup::CQSIZE);
        if (words[0], words[1]) != (sq_entries, cq_entries) || words[5] & FEAT_SINGLE_MMAP == 0 {
            return Err(Errno::NOTSUP);
        }
        let mut offsets = [0; 2 * OFFSETS];
        offsets.copy_from_slice(&words[PARAMS_HEAD..]);
        Ok(Layout { sq_entries, cq_entries, flags, offsets })
    }
}

/// IORING_ENTER_SQ_WAKEUP.
const ENTER_SQ_WAKEUP: u32 = 2;
/// How long a ring's thread may take.
const SERVICE: Duration = Duration::from_secs(5);

/// Submits requests; how many.
fn enter(ring: BorrowedFd<'_>, count: u32, flags: u32) -> Result<u32, Errno> {
    // SAFETY: without IORING_ENTER_EXT_ARG and a signal mask, io_uring_enter reads no memory of ours.
    let done = check(unsafe {
        libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), count, 0, flags, std::ptr::null::<u8>(), 0)
    })?;
    Ok(done as u32)
}

/// Shared memory of a ring, mapped here.
#[derive(Debug)]
pub struct Region {
    at: *mut u8,
    len: usize,
}

impl Region {
    /// Maps `len` bytes of a ring's file from `offset` on.
    pub fn map(ring: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Region, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let at = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, ring, offset) }?;
        Ok(Region { at: at.cast(), len })
    }

    /// Bytes that it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none, which the kernel does not map.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of what it holds.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        // SAFETY: each address lies in the mapping, which lives as long as `self`; volatile, since others may write it.
        (0..self.len).map(|at| unsafe { self.at.add(at).read_volatile() }).collect()
    }

    /// Overwrites bytes from an offset on, as far as it reaches.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..self.len).zip(bytes) {
            // SAFETY: as in `read`; the kernel expects anything there.
            unsafe { self.at.add(at).write_volatile(*byte) };
        }
    }

    /// The 32-bit word at an offset that is a multiple of four.
    ///
    /// # Panics
    /// When it is not inside.
    #[must_use]
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "a word inside of the mapping");
        // SAFETY: inside of the mapping and aligned, by the line above; the kernel uses these words atomically, too.
        unsafe { &*self.at.add(at).cast::<AtomicU32>() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made by `map`; references into it borrow from `self`.
        let _ = unsafe { munmap(self.at.cast(), self.len) };
    }
}

/// A ring with its memory mapped here.
#[derive(Debug)]
pub struct Mapped {
    pub layout: Layout,
    /// Heads, tails, completions and the array of indices.
    pub rings: Region,
    /// Entries of the submission queue.
    pub entries: Region,
}

impl Mapped {
    /// Maps all of a ring.
    pub fn new(ring: BorrowedFd<'_>, layout: Layout) -> Result<Self, Errno> {
        Ok(Mapped {
            layout,
            rings: Region::map(ring, RINGS_OFFSET, layout.rings_len())?,
            entries: Region::map(ring, ENTRIES_OFFSET, layout.entries_len())?,
        })
    }

    /// Makes a new ring stand where another stood: by as many requests that do nothing, since nothing can set the
    /// kernel's own indices. Takes some 0.1 µs for each.
    ///
    /// What is not collected (`Position::collected`) must stay so meanwhile: the kernel keeps places for completions
    /// in advance, from what it sees to be free.
    pub fn turn(&self, ring: BorrowedFd<'_>, position: Position) -> Result<(), Errno> {
        self.number();
        // Entries of a new ring are zero: IORING_OP_NOP.
        self.submit(ring, position.both(), position.collected)?;
        match position.silent() {
            0.. => {
                self.silence(true);
                self.submit(ring, position.silent() as u32, position.collected)?;
            }
            _ => self.send(ring, position.silent().unsigned_abs(), position.collected)?,
        }
        if self.completed() == position.completed { Ok(()) } else { Err(Errno::AGAIN) }
    }

    /// Lets each place of the submission queue lead to the entry of the same number.
    pub fn number(&self) {
        if let Some(array) = self.layout.array() {
            for index in 0..self.layout.sq_entries {
                self.rings.word(array + 4 * index as usize).store(index, Ordering::Relaxed);
            }
        }
    }

    /// Whether what is submitted completes without a word.
    pub fn silence(&self, silent: bool) {
        let flags = if silent { SKIP_SUCCESS } else { 0 };
        for index in 0..self.layout.sq_entries as usize {
            self.entries.write(index * self.layout.entry_len() + SQE_FLAGS, &[flags]);
        }
    }

    /// Keeps a registered eventfd from being told of completions, until the ring gets its contents.
    pub fn hush(&self) {
        const CQ_EVENTFD_DISABLED: u32 = 1;
        self.rings.word(self.layout.cq_flags()).fetch_or(CQ_EVENTFD_DISABLED, Ordering::Release);
    }

    /// Offers the next entries to the kernel.
    pub fn offer(&self, count: u32) {
        self.rings.word(self.layout.sq_tail()).fetch_add(count, Ordering::Release);
    }

    /// Completions that the kernel has told.
    #[must_use]
    pub fn completed(&self) -> u32 {
        self.rings.word(self.layout.cq_tail()).load(Ordering::Acquire)
    }

    fn submit(&self, ring: BorrowedFd<'_>, mut left: u32, collected: u32) -> Result<(), Errno> {
        while left > 0 {
            let some = left.min(self.layout.sq_entries);
            self.offer(some);
            if self.layout.flags & setup::SQPOLL != 0 {
                self.be_served(ring)?;
            } else if enter(ring, some, 0)? != some {
                return Err(Errno::AGAIN);
            }
            self.collect(collected);
            left -= some;
        }
        Ok(())
    }

    /// Waits until the ring's thread has taken all that was offered.
    fn be_served(&self, ring: BorrowedFd<'_>) -> Result<(), Errno> {
        let begun = Instant::now();
        poller::wake(ring)?;
        while !self.is_served() {
            if begun.elapsed() > SERVICE {
                return Err(Errno::AGAIN);
            }
            rustix::thread::sched_yield();
        }
        Ok(())
    }

    /// Whether all that was offered has been taken.
    #[must_use]
    pub fn is_served(&self) -> bool {
        let word = |at: usize| self.rings.word(at).load(Ordering::Acquire);
        word(self.layout.at(0)) == word(self.layout.sq_tail())
    }

    /// Where the kernel notes at any time that its thread sleeps.
    #[must_use]
    pub fn restless(&self) -> Option<usize> {
        (self.layout.flags & setup::SQPOLL != 0).then(|| self.layout.at(4))
    }

    /// Collects what has completed, up to an index.
    pub fn collect(&self, most: u32) {
        let tail = self.completed();
        let beyond = tail.wrapping_sub(most).cast_signed() > 0;
        self.rings.word(self.layout.cq_head()).store(if beyond { most } else { tail }, Ordering::Release);
    }

    /// Adds completions without requests: messages from another ring.
    fn send(&self, ring: BorrowedFd<'_>, count: u32, collected: u32) -> Result<(), Errno> {
        const MSG_RING: u8 = 40;
        const SQE_FD: usize = 4;
        let (helper, layout) = make(1, 2, 0)?;
        let sender = Mapped::new(helper.as_fd(), layout)?;
        sender.entries.write(0, &[MSG_RING]);
        sender.entries.write(SQE_FD, &ring.as_raw_fd().to_le_bytes());
        for sent in 1..=count {
            sender.submit(helper.as_fd(), 1, sent)?;
            self.collect(collected);
        }
        Ok(())
    }
}

/// How far a ring has come. All count modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Requests taken.
    pub submitted: u32,
    /// Completions told.
    pub completed: u32,
    /// Completions collected by the program.
    pub collected: u32,
}

impl Position {
    /// Requests without a completion, or if negative completions without a request of their own.
    #[must_use]
    pub fn silent(self) -> i32 {
        self.submitted.wrapping_sub(self.completed).cast_signed()
    }

    /// Requests with one completion each.
    #[must_use]
    pub fn both(self) -> u32 {
        if self.silent() < 0 { self.submitted } else { self.completed }
    }

    /// What [`Mapped::turn`] has to do.
    #[must_use]
    pub fn steps(self) -> u64 {
        u64::from(self.both()) + u64::from(self.silent().unsigned_abs())
    }

    /// Completions that are not collected.
    #[must_use]
    pub fn unread(self) -> u32 {
        self.completed.wrapping_sub(self.collected)
    }
}

/// What no call tells of a ring: what the kernel has of it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside {
    /// `setup::*` with which it was made.
    pub flags: u32,
    /// The address of the task that alone may submit; 0 for none.
    pub issuer: u64,
    /// Requests that have not completed. Linux 6.16.
    pub in_flight: Option<u64>,
    /// The clock of its waits (`CLOCK_*`). Linux 6.12.
    pub clock: Option<i32>,
    /// An eventfd is told of completions.
    pub eventfd: bool,
    /// Buffers were provided, as a ring or one by one.
    pub buffers: bool,
    /// It may do only some things.
    pub restricted: bool,
    /// Credentials of others are registered.
    pub personalities: bool,
    /// Memory for arguments of waits, or queues of a network interface, are registered.
    pub regions: bool,
}

/// Looks into a ring, a descriptor of a task. ENOENT or ENOTSUP where the kernel does not describe its types, or has
/// others; EPERM without the right to look.
pub fn inside(tid: i32, fd: i32) -> Result<Inside, Errno> {
    const CONTEXT: &str = "io_ring_ctx";
    let btf = Btf::running()?;
    let need = |name: &str, len| btf.field(CONTEXT, name).map(|offset| Field { offset, len }).ok_or(Errno::NOTSUP);
    let within = |outer: Field, structure: &str, name: &str, len| {
        btf.field(structure, name).map(|at| Field { offset: outer.offset + at, len }).ok_or(Errno::NOTSUP)
    };
    let head = |outer: &str| within(need(outer, 8)?, "xarray", "xa_head", 8);
    let mut wanted = vec![
        need("flags", 4)?,
        need("io_ev_fd", 8)?,
        head("io_bl_xa")?,
        head("personalities")?,
        within(need("restrictions", 1)?, "io_restriction", "registered", 1)?,
    ];
    // What kernels have got since: what is not there is not in use.
    let mut optional = |field: Result<Field, Errno>| {
        field.ok().map(|field| {
            wanted.push(field);
            wanted.len() + 1
        })
    };
    let clock = optional(need("clockid", 4));
    let issuer = optional(need("submitter_task", 8));
    let queues = optional(head("zcrx_ctxs"));
    let region = optional(need("param_region", 4).and_then(|f| within(f, "io_mapped_region", "nr_pages", 4)));
    let allocated = optional(need("nr_req_allocated", 4));
    let free = optional(need("submit_state", 8).and_then(|f| within(f, "io_submit_state", "free_list", 8)));
    let words = bpf_iter::fields(btf, (tid, fd), Base::Behind, &wanted)?;
    let value = |at: Option<usize>| at.map(|at| words[at]);
    let in_flight = match (value(allocated), value(free)) {
        (Some(all), Some(first)) => Some(all.saturating_sub(bpf_iter::list_len(btf, (tid, fd), first)?)),
        _ => None,
    };
    Ok(Inside {
        flags: words[2] as u32,
        issuer: value(issuer).unwrap_or(0),
        in_flight,
        clock: value(clock).map(|clock| clock as i32),
        eventfd: words[3] != 0,
        buffers: words[4] != 0,
        personalities: words[5] != 0,
        restricted: words[6] != 0,
        regions: value(queues).unwrap_or(0) != 0 || value(region).unwrap_or(0) != 0,
    })
}

/// The address of a task, by which others know it. `fd` is any descriptor of it.
pub fn task_address(tid: i32, fd: i32) -> Result<u64, Errno> {
    Ok(bpf_iter::fields(Btf::running()?, (tid, fd), Base::Task, &[])?[1])
}

/// Which rings a thread may call by a number instead of a descriptor (IORING_REGISTER_RING_FDS): the numbers, and the
/// addresses of the rings' files. `fd` is any descriptor of it.
pub fn registered(tid: i32, fd: i32) -> Result<Vec<(u32, u64)>, Errno> {
    /// IO_RINGFD_REG_MAX of the kernel.
    const MOST: u32 = 16;
    let btf = Btf::running()?;
    let field = |structure, name| btf.field(structure, name).ok_or(Errno::NOTSUP);
    let own = Field { offset: field("task_struct", "io_uring")?, len: 8 };
    let context = bpf_iter::fields(btf, (tid, fd), Base::Task, &[own])?[2];
    if context == 0 {
        return Ok(Vec::new());
    }
    let first = field("io_uring_task", "registered_rings")?;
    let all: Vec<Field> = (0..MOST).map(|n| Field { offset: first + 8 * n, len: 8 }).collect();
    let words = bpf_iter::fields(btf, (tid, fd), Base::Address(context), &all)?;
    Ok((0..).zip(words[2..].iter().copied()).filter(|&(_, file)| file != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use crate::proc::fdinfo::Details;

    fn told(ring: &OwnedFd, key: &str) -> String {
        let info = Task::current().unwrap().fdinfo(ring.as_raw_fd()).unwrap();
        let Details::Other(lines) = info.details else { panic!("{info:?}") };
        let line = lines.iter().find_map(|line| std::str::from_utf8(line).ok()?.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }

    #[test]
    fn a_ring_is_turned_to_where_another_stood() {
        for flags in [0, setup::NO_SQARRAY, setup::SQE128 | setup::CQE32, setup::SUBMIT_ALL | setup::COOP_TASKRUN] {
            let (ring, layout) = make(8, 32, flags).unwrap();
            let mapped = Mapped::new(ring.as_fd(), layout).unwrap();
            let position = Position { submitted: 1003, completed: 998, collected: 970 };
            mapped.turn(ring.as_fd(), position).unwrap();
            assert_eq!((told(&ring, "CachedSqHead"), told(&ring, "CachedCqTail")), ("1003".into(), "998".into()));
            assert_eq!((told(&ring, "CQEs"), told(&ring, "CqHead")), ("28".into(), "970".into()));
            let inside = inside(std::process::id() as i32, ring.as_raw_fd()).unwrap();
            assert_eq!(inside.flags & !setup::CQSIZE, flags);
            assert_eq!((inside.in_flight.unwrap_or(0), inside.clock.unwrap_or(1)), (0, libc::CLOCK_MONOTONIC));
            assert!(!inside.eventfd && !inside.buffers && !inside.personalities && !inside.regions);
            assert_eq!(registered(std::process::id() as i32, ring.as_raw_fd()), Ok(Vec::new()));
        }
        let (ring, layout) = make(2, 4, 0).unwrap();
        let position = Position { submitted: 5, completed: 20, collected: 18 };
        Mapped::new(ring.as_fd(), layout).unwrap().turn(ring.as_fd(), position).unwrap();
        assert_eq!((told(&ring, "CachedSqHead"), told(&ring, "CachedCqTail")), ("5".into(), "20".into()));
        assert_eq!(make(7, 32, 0).unwrap_err(), Errno::NOTSUP);
    }

    #[test]
    fn requests_in_flight_are_told_from_those_kept_for_later() {
        const POLL_ADD: u8 = 6;
        let count = |ring: &OwnedFd| inside(std::process::id() as i32, ring.as_raw_fd()).unwrap().in_flight;
        // More than one look at the kernel's list of free ones takes in.
        let (ring, layout) = make(2048, 4096, 0).unwrap();
        let mapped = Mapped::new(ring.as_fd(), layout).unwrap();
        mapped.turn(ring.as_fd(), Position { submitted: 4096, completed: 4096, collected: 4096 }).unwrap();
        let Some(none) = count(&ring) else { return };
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        mapped.silence(false);
        mapped.entries.write(0, &[POLL_ADD]);
        mapped.entries.write(4, &reader.as_raw_fd().to_le_bytes());
        mapped.entries.write(28, &libc::POLLIN.to_le_bytes());
        mapped.submit(ring.as_fd(), 1, u32::MAX).unwrap();
        assert_eq!((none, count(&ring)), (0, Some(1)));
        drop(writer);
    }
}
