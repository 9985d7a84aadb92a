//! An outlet: pipes into which a hand puts pages of its process by reference,
//! and out of which we move them into a file.
//!
//! vmsplice(2) copies nothing, so the only copy is the one into the file. It
//! takes references that are not pins (iov_iter_get_pages, not FOLL_PIN): pages
//! that are shared until somebody writes stay so.
//!
//! Pages of zeros need not be moved. The process writes the first bytes of each
//! page into one more pipe (writev(2)): for whoever has none of these, that is
//! not a page of zeros. No reference is taken for it, and what the process may
//! not read is an error of the call, not of the process.
//!
//! The process has both ends of each pipe, so a deserted hand never writes to
//! a pipe that nobody could read (SIGPIPE). It never waits, since it puts in
//! only what has room. Its farewell closes the ends (`numbers`).

use crate::memory::{Remote, divide};
use crate::{Arg, Batch, Call, Error, Hand, Result, numbers};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Pipes that are filled by one batch.
const AT_ONCE: usize = 2;
const PIPES: usize = Outlet::TURNS * AT_ONCE;
/// What an unprivileged user may have (fs.pipe-max-size), and we as well.
const WANTED: usize = 1 << 20;
/// With less, waking the hand takes longer than what it saves.
const LEAST: usize = 1 << 18;

/// The pipe of the first bytes of pages.
const PROBE: usize = PIPES;
/// How many bytes that are: a line of the processor's cache.
const PROBED: usize = 64;

const _: () = assert!(2 * (PIPES + 1) <= numbers::MAX);

/// The pipes.
#[derive(Debug)]
pub struct Outlet {
    pipes: Vec<Pipe>,
    /// Bytes that each of them takes.
    room: usize,
    /// Whose turn is next.
    turn: usize,
    /// For the first bytes of pages.
    probe: Pipe,
}

#[derive(Debug)]
struct Pipe {
    /// Number of the end for writing, in the process.
    write: i32,
    read: Arc<OwnedFd>,
}

/// What is in a pipe.
#[derive(Debug)]
pub struct Portion {
    /// The end from which it comes.
    pub end: Arc<OwnedFd>,
    /// What should be in it.
    pub spans: Vec<Remote>,
    /// How many bytes of it are: fewer if the process may not read all of it.
    pub filled: usize,
}

impl Outlet {
    /// How many fillings may be under way: while one is made, others wait for the file, so that it never waits for us.
    pub const TURNS: usize = 4;

    /// Makes the pipes. `EMFILE` if the process has no free descriptors,
    /// `EPERM` if its user has no room for pipes of some size.
    pub fn open(hand: &mut Hand) -> Result<Outlet> {
        let opened = Self::make(hand);
        if opened.is_err() {
            numbers::close_after_failure(hand);
        }
        opened
    }

    fn make(hand: &mut Hand) -> Result<Outlet> {
        let mut b = Batch::new();
        for pipe in 0..PIPES {
            let ends = numbers::place(hand.base, 2 * pipe);
            b.call(libc::SYS_pipe2, [ends.into(), libc::O_CLOEXEC.into()]);
            b.attempt(libc::SYS_fcntl, [Arg::At(ends), libc::F_SETPIPE_SZ.into(), WANTED.into()]);
        }
        let ends = numbers::place(hand.base, 2 * PROBE);
        b.call(libc::SYS_pipe2, [ends.into(), (libc::O_CLOEXEC | libc::O_NONBLOCK).into()]);
        let size = |pipe| [Arg::At(numbers::place(hand.base, 2 * pipe)), libc::F_GETPIPE_SZ.into()];
        let sizes: Vec<Call> = (0..PIPES).map(|pipe| b.call(libc::SYS_fcntl, size(pipe))).collect();
        hand.run(&mut b)?;
        let room = sizes.iter().map(|call| b.result(*call).unwrap_or(0)).min().unwrap_or(0) as usize;
        if room < LEAST {
            return Err(Error::Call {
                pid: hand.pid,
                call: "fcntl(F_SETPIPE_SZ)".into(),
                errno: rustix::io::Errno::PERM,
            });
        }
        let pipe = |ends: &[i32]| -> Result<Pipe> {
            Ok(Pipe { read: Arc::new(numbers::duplicate(hand, ends[0])?), write: ends[1] })
        };
        let numbers = numbers::read(hand)?;
        let pipes = numbers.chunks_exact(2).take(PIPES).map(pipe).collect::<Result<_>>()?;
        let probe = pipe(&numbers[2 * PROBE..][..2])?;
        Ok(Outlet { pipes, room, turn: 0, probe })
    }

    /// The calls that it makes in the process beside those of a farewell.
    #[must_use]
    pub fn calls() -> [i64; 4] {
        [libc::SYS_pipe2, libc::SYS_fcntl, libc::SYS_vmsplice, libc::SYS_writev]
    }

    /// How many pages [`Outlet::begin_with_zeros`] is asked about at once.
    pub const PROBED_AT_ONCE: usize = 512;

    /// Which of these pages may be pages of zeros: none of which that is not known, and not those that the process may not
    /// read.
    pub fn begin_with_zeros(&mut self, hand: &mut Hand, pages: &[u64]) -> Result<Vec<bool>> {
        let mut b = Batch::new();
        let words = pages.iter().flat_map(|page| [*page, PROBED as u64]);
        let vector = b.bytes(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
        let call = b.attempt(libc::SYS_writev, [self.probe.write.into(), vector.into(), pages.len().into()]);
        hand.run(&mut b)?;
        let mut bytes = vec![0; b.result(call).unwrap_or(0) as usize];
        let own = |errno| Error::Own { what: "read from a pipe of a process", errno };
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::io::read(&self.probe.read, &mut bytes[filled..]).map_err(own)? {
                0 => return Err(own(rustix::io::Errno::PIPE)),
                count => filled += count,
            }
        }
        let mut known: Vec<bool> = bytes.chunks_exact(PROBED).map(|first| first == [0; PROBED]).collect();
        known.resize(pages.len(), false);
        Ok(known)
    }

    /// Bytes that can be filled in at once for this position of the file.
    #[must_use]
    pub fn room(&self, position: u64) -> usize {
        (AT_ONCE - 1) * self.room + self.first(position) as usize
    }

    /// The first pipe gets as much as leads to a multiple of what a pipe takes:
    /// from there on, each is one large folio in the page cache. That is a
    /// tenth faster.
    fn first(&self, position: u64) -> u64 {
        self.room as u64 - position % self.room as u64
    }

    /// Fills in whole pages for this position of the file, at most as many as
    /// have [room](Outlet::room); what is in which pipe, in the order of the
    /// spans. What was filled in
    /// [`Outlet::TURNS`] times before must be out.
    pub fn fill(&mut self, hand: &mut Hand, spans: &[Remote], position: u64) -> Result<Vec<Portion>> {
        let pipes = &self.pipes[self.turn * AT_ONCE..][..AT_ONCE];
        self.turn = (self.turn + 1) % Self::TURNS;
        let mut b = Batch::new();
        let mut calls = Vec::new();
        let groups = divide(spans, self.first(position), self.room as u64);
        for (spans, pipe) in groups.iter().zip(pipes) {
            let words = spans.iter().flat_map(|span| [span.address, span.len]);
            let vector = b.bytes(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
            let flags = libc::SPLICE_F_NONBLOCK;
            let args = [pipe.write.into(), vector.into(), spans.len().into(), flags.into()];
            calls.push(b.attempt(libc::SYS_vmsplice, args));
        }
        hand.run(&mut b)?;
        let filled = calls.into_iter().map(|call| b.result(call).unwrap_or(0) as usize);
        let portion = |((spans, pipe), filled): ((_, &Pipe), _)| Portion { end: pipe.read.clone(), spans, filled };
        Ok(groups.into_iter().zip(pipes).zip(filled).map(portion).collect())
    }

    /// Closes the pipes. The hand must be idle.
    pub fn close(self, hand: &mut Hand) -> Result<()> {
        numbers::close(hand)
    }
}
