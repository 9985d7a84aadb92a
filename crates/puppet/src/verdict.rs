//! The verdict: one word that all hands of a tree look at when they find
//! themselves alone, so that one store decides for all of them at once.
//!
//! At a checkpoint it says "go on" until the image is there, then "die". A
//! tree of one process needs no common word: to kill it is one call. At a
//! restore it says "die" until all is built, then "go on".
//!
//! A tree that is born inherits the page. One that is visited must be given a
//! memfd: over a socket pair that the hand makes for a moment, since a process
//! may have no rights to ours and no name in common with us. The farewell
//! closes what it opened, should we die in between.

use crate::{Arg, Batch, Error, Hand, Result, numbers, scratch};
use cryonaut_kernel::Errno;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE: usize = 4096;
/// Length of a control message with one descriptor (`CMSG_SPACE`).
const ROOM_FOR_ONE: u64 = 24;

/// The word.
#[derive(Debug)]
pub struct Verdict {
    word: NonNull<AtomicU32>,
    file: Option<OwnedFd>,
}

impl Verdict {
    /// For a tree that is to be born with scratch mappings at `base`: it is to
    /// die if we do. `EEXIST` if something is in the way.
    pub fn inherited(base: u64) -> Result<Verdict> {
        let at = (base + scratch::VERDICT) as *mut core::ffi::c_void;
        let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE changes no existing mapping.
        let got = unsafe { rustix::mm::mmap_anonymous(at, PAGE, ProtFlags::READ | ProtFlags::WRITE, flags) };
        let verdict = Self::of(got, None)?;
        verdict.set(scratch::VERDICT_DIE);
        Ok(verdict)
    }

    /// For a tree that is visited: it is to go on if we die.
    pub fn new() -> Result<Verdict> {
        let own = |errno| Error::Own { what: "make the word that decides for all processes", errno };
        let file = rustix::fs::memfd_create("cryonaut-verdict", MemfdFlags::CLOEXEC).map_err(own)?;
        rustix::fs::ftruncate(&file, PAGE as u64).map_err(own)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED, the new mapping replaces nothing.
        let got = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, prot, MapFlags::SHARED, &file, 0) };
        Self::of(got, Some(file))
    }

    fn of(mapped: std::result::Result<*mut core::ffi::c_void, Errno>, file: Option<OwnedFd>) -> Result<Verdict> {
        let own = |errno| Error::Own { what: "map the word that decides for all processes", errno };
        let word = NonNull::new(mapped.map_err(own)?.cast()).ok_or_else(|| own(Errno::NOMEM))?;
        Ok(Verdict { word, file })
    }

    fn set(&self, verdict: u32) {
        // SAFETY: `word` points to the mapping made in the constructor, which stands until `self` is dropped; the
        // other processes that have it only read it, and atomically.
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

    /// Gives the word to a visited process.
    pub fn give(&self, hand: &mut Hand) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let done = hand_over(hand, file.as_fd());
        if done.is_err() {
            numbers::close_after_failure(hand);
        }
        done
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping of the constructor; `self` was the only one to refer to it.
        let _ = unsafe { rustix::mm::munmap(self.word.as_ptr().cast(), PAGE) };
    }
}

/// Gives the file to the process and has it mapped there. Two batches, since
/// the socket has to be there before we can send.
fn hand_over(hand: &mut Hand, file: BorrowedFd<'_>) -> Result<()> {
    let base = hand.base;
    let number = |index| numbers::place(base, index);
    let (received, mine, theirs) = (0, 1, 2);
    let mut first = Batch::new();
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    first.call(libc::SYS_socketpair, [libc::AF_UNIX.into(), kind.into(), 0.into(), number(mine).into()]);
    hand.run(&mut first)?;
    let socket = numbers::duplicate(hand.pid, numbers::read(hand)?[theirs])?;
    crate::passing::send_files(&socket, &[file])?;

    let mut second = Batch::new();
    let payload = second.bytes(&[0; 8]);
    let vector = second.bytes(&[0; 16]);
    second.point(vector, payload);
    second.set(vector.at(8), &1u64.to_le_bytes());
    // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
    let message = second.bytes(&[0; 56]);
    second.point(message.at(16), vector);
    second.set(message.at(24), &1u64.to_le_bytes());
    second.set(message.at(32), &(base + scratch::CONTROL).to_le_bytes());
    second.set(message.at(40), &ROOM_FOR_ONE.to_le_bytes());
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    second.call(libc::SYS_recvmsg, [Arg::At(number(mine)), message.into(), flags.into()]);
    let at = base + scratch::VERDICT;
    let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
    let file = Arg::At(number(received));
    second.call(libc::SYS_mmap, [at.into(), PAGE.into(), libc::PROT_READ.into(), fixed.into(), file, 0.into()]);
    numbers::close_in(&mut second, base);
    hand.run(&mut second)
}
