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

use crate::scratch::{self, op, slot};
use crate::{Arg, Batch, Data, Error, Hand, Result, farewell, trace};
use cryonaut_kernel::Errno;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGE: usize = 4096;

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
        let exchange = Exchange::new();
        exchange.prepare(hand)?;
        let done = exchange.make(hand, file.as_fd());
        if done.is_err() {
            exchange.clean(hand);
        }
        hand.poke(hand.base + scratch::SLOT + slot::FAREWELL_COUNT as u64, &farewell::FOR_OTHERS.to_le_bytes())?;
        done
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping of the constructor; `self` was the only one to refer to it.
        let _ = unsafe { rustix::mm::munmap(self.word.as_ptr().cast(), PAGE) };
    }
}

/// Two batches with the same data, so that the farewell finds the numbers of
/// descriptors in the same place whichever was laid down last.
#[derive(Debug)]
struct Exchange {
    data: Batch,
    pair: Data,
    control: Data,
    message: Data,
}

/// `struct cmsghdr` before the descriptor.
const CONTROL_HEAD: usize = 16;
/// Index of the last operation of the second batch, which fails: once it has
/// run, nothing is left to close.
const LAST: usize = 5;

impl Exchange {
    fn new() -> Exchange {
        let mut data = Batch::new();
        // Numbers of no descriptor.
        let pair = data.bytes(&[0xff; 8]);
        let control = data.bytes(&[0xff; CONTROL_HEAD + 8]);
        let payload = data.bytes(&[0; 8]);
        let vector = data.bytes(&[0; 16]);
        data.point(vector, payload);
        data.set(vector.at(8), &1u64.to_le_bytes());
        // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
        let message = data.bytes(&[0; 56]);
        data.point(message.at(16), vector);
        data.set(message.at(24), &1u64.to_le_bytes());
        data.point(message.at(32), control);
        data.set(message.at(40), &(control.len() as u64).to_le_bytes());
        Exchange { data, pair, control, message }
    }

    /// The farewell that closes what is open.
    fn prepare(&self, hand: &Hand) -> Result<()> {
        let base = hand.base;
        let data = |d: Data| base + scratch::DATA + d.offset();
        let unless = base + scratch::OPS + (LAST * op::SIZE + op::RESULT) as u64;
        let close = |at: u64| farewell::operation(libc::SYS_close, [at, 0, 0, 0, 0, 0], 1, unless);
        let all = [data(self.pair), data(self.pair.at(4)), data(self.control.at(CONTROL_HEAD))].map(close).concat();
        let count = farewell::FOR_OTHERS;
        let more = base + scratch::FAREWELL + count * op::SIZE as u64;
        // Until a batch has been laid down, there are zeros where the numbers will be.
        let none = vec![0xff; self.message.offset() as usize];
        hand.poke_all(&[
            (base + scratch::DATA, &none),
            (unless, &[0; 8]),
            (more, &all),
            (base + scratch::SLOT + slot::FAREWELL_COUNT as u64, &(count + 3).to_le_bytes()),
        ])
    }

    fn make(&self, hand: &mut Hand, file: BorrowedFd<'_>) -> Result<()> {
        let mut first = self.data.clone();
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        first.call(libc::SYS_socketpair, [libc::AF_UNIX.into(), kind.into(), 0.into(), self.pair.into()]);
        first.read_back(self.pair);
        hand.run(&mut first)?;
        let numbers = first.read_u64(self.pair);
        let theirs = (numbers >> 32) as i32;
        send(hand.pid, theirs, file)?;

        let mut second = self.data.clone();
        second.set(self.pair, &numbers.to_le_bytes());
        let mine = numbers as u32 as i32;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        second.call(libc::SYS_recvmsg, [mine.into(), self.message.into(), flags.into()]);
        let descriptor = Arg::Load(self.control.at(CONTROL_HEAD));
        let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
        let at = hand.base + scratch::VERDICT;
        second
            .call(libc::SYS_mmap, [at.into(), PAGE.into(), libc::PROT_READ.into(), fixed.into(), descriptor, 0.into()]);
        second.attempt(libc::SYS_close, [descriptor]);
        second.attempt(libc::SYS_close, [mine.into()]);
        second.attempt(libc::SYS_close, [theirs.into()]);
        debug_assert_eq!(second.len(), LAST);
        second.attempt(libc::SYS_close, [Arg::Val(u64::MAX)]);
        hand.run(&mut second)
    }

    /// After a failure: closes whatever is open.
    fn clean(&self, hand: &mut Hand) {
        let Ok(there) = hand.peek(hand.base + scratch::DATA, self.message.offset() as usize) else { return };
        let mut b = Batch::new();
        for at in [self.pair.offset(), self.pair.offset() + 4, self.control.offset() + CONTROL_HEAD as u64] {
            let at = at as usize;
            let number = i32::from_le_bytes(there[at..at + 4].try_into().unwrap_or_default());
            if number >= 0 {
                b.attempt(libc::SYS_close, [number.into()]);
            }
        }
        if let Err(e) = hand.run(&mut b) {
            tracing::warn!("closing what was open in process {}: {e}", hand.pid);
        }
    }
}

/// Sends a file into a socket of the process, from that very socket's side.
fn send(pid: i32, number: i32, file: BorrowedFd<'_>) -> Result<()> {
    let own = |errno| Error::Own { what: "reach the socket of a process", errno };
    let pidfd = rustix::process::pidfd_open(trace::id(pid).map_err(own)?, PidfdFlags::empty()).map_err(own)?;
    let socket = rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(own)?;
    crate::passing::send_files(&socket, &[file])
}
