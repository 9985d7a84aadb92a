//! The verdict: one word that all hands of a tree look at when they find
//! themselves alone, so that one store decides for all of them at once.
//!
//! At a checkpoint it says "go on" until the image is there, then "die". A
//! tree of one process needs no common word: to kill it is one call. At a
//! restore it says "die" until all is built, then "go on".
//!
//! A tree that is born inherits the page. One that is visited attaches it as
//! a segment of System V, in any batch of its hands ([`Verdict::offer_in`]);
//! who cannot, in another ipc namespace for example, is lent the same page as a
//! file (`lending`, [`Verdict::give`]).

use crate::{Batch, Call, Error, Hand, Result, lending, numbers, scratch};
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::sysv::{self, Attached};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE: usize = 4096;

/// The word.
#[derive(Debug)]
pub struct Verdict {
    word: NonNull<AtomicU32>,
    page: Page,
}

/// What the word lies in.
#[derive(Debug)]
enum Page {
    /// A mapping of ours, which the processes are born with.
    Inherited,
    /// The same, and a file by which they can have it.
    File(OwnedFd),
    /// A segment, with its id and as a file.
    Segment { id: i32, file: OwnedFd, _attached: Attached },
}

impl Verdict {
    /// For a tree that is to be born with scratch mappings at `base`: it is to
    /// die if we do. `EEXIST` if something is in the way.
    pub fn inherited(base: u64) -> Result<Verdict> {
        let at = (base + scratch::VERDICT) as *mut core::ffi::c_void;
        let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE changes no existing mapping.
        let got = unsafe { rustix::mm::mmap_anonymous(at, PAGE, ProtFlags::READ | ProtFlags::WRITE, flags) };
        let verdict = Self::mapped(got, Page::Inherited)?;
        verdict.set(scratch::VERDICT_DIE);
        Ok(verdict)
    }

    /// For a tree that is visited: it is to go on if we die.
    pub fn new() -> Result<Verdict> {
        let segment = Self::segment();
        let no = |e: &Errno| tracing::debug!("a segment as the word that decides for all processes: {e}");
        segment.inspect_err(no).or_else(|_| Self::file())
    }

    /// Nobody but us may write it, everybody attach it.
    fn segment() -> std::result::Result<Verdict, Errno> {
        let (id, attached) = sysv::nameless(PAGE, 0o644)?;
        let word = NonNull::new(attached.as_ptr().cast()).ok_or(Errno::NOMEM)?;
        Ok(Verdict { word, page: Page::Segment { id, file: attached.file()?, _attached: attached } })
    }

    fn file() -> Result<Verdict> {
        let own = |errno| Error::Own { what: "make the word that decides for all processes", errno };
        let file = rustix::fs::memfd_create("cryonaut-verdict", MemfdFlags::CLOEXEC).map_err(own)?;
        rustix::fs::ftruncate(&file, PAGE as u64).map_err(own)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED, the new mapping replaces nothing.
        let got = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, prot, MapFlags::SHARED, &file, 0) };
        Self::mapped(got, Page::File(file))
    }

    fn mapped(mapped: std::result::Result<*mut core::ffi::c_void, Errno>, page: Page) -> Result<Verdict> {
        let own = |errno| Error::Own { what: "map the word that decides for all processes", errno };
        let word = NonNull::new(mapped.map_err(own)?.cast()).ok_or_else(|| own(Errno::NOMEM))?;
        Ok(Verdict { word, page })
    }

    fn set(&self, verdict: u32) {
        // SAFETY: `word` points to the mapping made in the constructor, at the beginning of a page, which stands until
        // `self` is dropped; the other processes that have it only read it, and atomically.
        unsafe { self.word.as_ref() }.store(verdict, Ordering::SeqCst);
    }

    /// From here on, everything goes on without us.
    pub fn go_on(&self) {
        self.set(scratch::VERDICT_GO_ON);
    }

    /// From here on, everything dies without us.
    pub fn die(&self) {
        self.set(scratch::VERDICT_DIE);
    }

    /// Adds to a batch that the process takes the word. It must be in our ipc namespace: in another, the id may be that of
    /// something else. [`Verdict::took`] is to be told.
    pub fn offer_in(&self, b: &mut Batch, hand: &Hand) -> Option<Call> {
        let Page::Segment { id, .. } = self.page else { return None };
        let flags = libc::SHM_RDONLY | libc::SHM_REMAP;
        Some(b.attempt(libc::SYS_shmat, [id.into(), (hand.base + scratch::VERDICT).into(), flags.into()]))
    }

    /// Notes whether the process has taken the word by a call of a batch that it has run.
    pub fn took(hand: &mut Hand, b: &Batch, offered: Option<Call>) {
        hand.has_verdict |= offered.is_some_and(|call| b.result(call).is_ok());
    }

    /// Gives the word to those of the visited processes that have not taken it, all at once; returns those that
    /// could not take it now either, each with the reason.
    pub fn give(&self, hands: Vec<&mut Hand>) -> Vec<(i32, Error)> {
        let (Page::File(file) | Page::Segment { file, .. }) = &self.page else { return Vec::new() };
        let mut failed = Vec::new();
        let all = hands.into_iter().filter(|hand| !hand.has_verdict).map(|hand| (Batch::new(), hand));
        let asked: Vec<Visit<'_>> = all.filter_map(|one| step(&mut failed, one, ask)).collect();
        let send = |batch: &mut Batch, hand: &mut Hand| send(batch, hand, file.as_fd());
        let sent: Vec<Visit<'_>> = asked.into_iter().filter_map(|one| step(&mut failed, one, send)).collect();
        for one in sent {
            step(&mut failed, one, |batch, hand| hand.wait(batch));
        }
        failed
    }
}

/// A hand and the batch that it runs, or ran last.
type Visit<'a> = (Batch, &'a mut Hand);

/// One step with a hand; who fails is cleaned up and goes no further.
fn step<'a>(
    failed: &mut Vec<(i32, Error)>,
    (mut batch, hand): Visit<'a>,
    take: impl Fn(&mut Batch, &mut Hand) -> Result<()>,
) -> Option<Visit<'a>> {
    match take(&mut batch, hand) {
        Ok(()) => Some((batch, hand)),
        Err(e) => {
            numbers::close_after_failure(hand);
            failed.push((hand.pid, e));
            None
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if matches!(self.page, Page::Inherited | Page::File(_)) {
            // SAFETY: exactly the mapping of the constructor; `self` was the only one to refer to it.
            let _ = unsafe { rustix::mm::munmap(self.word.as_ptr().cast(), PAGE) };
        }
    }
}

/// Starts the batch that asks for the file.
fn ask(b: &mut Batch, hand: &mut Hand) -> Result<()> {
    lending::ask_in(b, hand.base);
    hand.start(b)
}

/// Sends the file once that is done, and starts the batch that maps it.
fn send(b: &mut Batch, hand: &mut Hand, file: BorrowedFd<'_>) -> Result<()> {
    hand.wait(b)?;
    lending::send(hand, file)?;
    let base = hand.base;
    let mut map = Batch::new();
    lending::receive_in(&mut map, base);
    let at = base + scratch::VERDICT;
    let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
    let file = lending::number(base);
    map.call(libc::SYS_mmap, [at.into(), PAGE.into(), libc::PROT_READ.into(), fixed.into(), file, 0.into()]);
    lending::close_in(&mut map, base);
    *b = map;
    hand.start(b)
}
