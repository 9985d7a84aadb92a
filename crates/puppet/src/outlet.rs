//! An outlet: pipes into which a hand puts pages of its process by reference,
//! and out of which we move them into a file.
//!
//! vmsplice(2) copies nothing, so the only copy is the one into the file. It
//! takes references that are not pins (iov_iter_get_pages, not FOLL_PIN): pages
//! that are shared until somebody writes stay so.
//!
//! The process has both ends of each pipe, so a deserted hand never writes to
//! a pipe that nobody could read (SIGPIPE). It never waits, since it puts in
//! only what has room. Its farewell closes the ends (`numbers`).

use crate::memory::Remote;
use crate::{Arg, Batch, Call, Error, Hand, Result, numbers};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Pipes that are filled by one batch.
const AT_ONCE: usize = 2;
/// While one half of the pipes is filled, the other is emptied.
const HALVES: usize = 2;
const PIPES: usize = HALVES * AT_ONCE;
/// What an unprivileged user may have (fs.pipe-max-size), and we as well.
const WANTED: usize = 1 << 20;
/// With less, waking the hand takes longer than what it saves.
const LEAST: usize = 1 << 18;

const _: () = assert!(2 * PIPES <= numbers::MAX);

/// The pipes.
#[derive(Debug)]
pub struct Outlet {
    pipes: Vec<Pipe>,
    /// Bytes that each of them takes.
    room: usize,
    /// The half that is filled next.
    half: usize,
}

#[derive(Debug)]
struct Pipe {
    /// Number of the end for writing, in the process.
    write: i32,
    read: OwnedFd,
}

/// A batch that fills pipes.
#[derive(Debug)]
pub struct Filling {
    batch: Batch,
    pours: Vec<Pour>,
}

#[derive(Debug)]
struct Pour {
    pipe: usize,
    call: Call,
    spans: Vec<Remote>,
}

/// What is in a pipe.
#[derive(Debug)]
pub struct Portion {
    /// The pipe, for [`Outlet::end`].
    pub pipe: usize,
    /// What should be in it.
    pub spans: Vec<Remote>,
    /// How many bytes of it are: fewer if the process may not read all of it.
    pub filled: usize,
}

impl Outlet {
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
        let pipe = |ends: &[i32]| Ok(Pipe { read: numbers::duplicate(hand.pid, ends[0])?, write: ends[1] });
        let pipes = numbers::read(hand)?.chunks_exact(2).take(PIPES).map(pipe).collect::<Result<_>>()?;
        Ok(Outlet { pipes, room, half: 0 })
    }

    /// The calls that it makes in the process beside those of a farewell.
    #[must_use]
    pub fn calls() -> [i64; 3] {
        [libc::SYS_pipe2, libc::SYS_fcntl, libc::SYS_vmsplice]
    }

    /// Bytes that can be filled in at once.
    #[must_use]
    pub fn room(&self) -> usize {
        AT_ONCE * self.room
    }

    /// The end from which a portion comes.
    #[must_use]
    pub fn end(&self, portion: &Portion) -> BorrowedFd<'_> {
        self.pipes[portion.pipe].read.as_fd()
    }

    /// Starts to fill in whole pages, at most as many as have
    /// [room](Outlet::room); does not wait. What was filled in by the start
    /// before the last must be out.
    pub fn start(&mut self, hand: &mut Hand, spans: &[Remote]) -> Result<Filling> {
        let first = self.half * AT_ONCE;
        let mut filling = Filling { batch: Batch::new(), pours: Vec::new() };
        for (spans, pipe) in divide(spans, self.room as u64).into_iter().zip(first..first + AT_ONCE) {
            let b = &mut filling.batch;
            let vector =
                b.bytes(&spans.iter().flat_map(|s| [s.address, s.len]).flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
            let call = b.attempt(
                libc::SYS_vmsplice,
                [self.pipes[pipe].write.into(), vector.into(), spans.len().into(), libc::SPLICE_F_NONBLOCK.into()],
            );
            filling.pours.push(Pour { pipe, call, spans });
        }
        hand.start(&filling.batch)?;
        self.half = (self.half + 1) % HALVES;
        Ok(filling)
    }

    /// Waits until it is done; what is in which pipe, in the order of the spans.
    pub fn wait(&self, hand: &mut Hand, mut filling: Filling) -> Result<Vec<Portion>> {
        hand.wait(&mut filling.batch)?;
        let filled = |call| filling.batch.result(call).unwrap_or(0) as usize;
        Ok(filling
            .pours
            .into_iter()
            .map(|p| Portion { pipe: p.pipe, filled: filled(p.call), spans: p.spans })
            .collect())
    }

    /// Closes the pipes. The hand must be idle.
    pub fn close(self, hand: &mut Hand) -> Result<()> {
        numbers::close(hand)
    }
}

/// Spans in groups of `room` bytes, the last of what is left.
fn divide(spans: &[Remote], room: u64) -> Vec<Vec<Remote>> {
    let mut groups: Vec<Vec<Remote>> = Vec::new();
    let mut free = 0;
    for span in spans {
        let (mut address, mut left) = (span.address, span.len);
        while left > 0 {
            if free == 0 {
                groups.push(Vec::new());
                free = room;
            }
            let len = left.min(free);
            groups.last_mut().into_iter().for_each(|group| group.push(Remote { address, len }));
            (address, left, free) = (address + len, left - len, free - len);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_where_a_pipe_is_full() {
        let span = |address, len| Remote { address, len };
        let spans = [span(10, 3), span(20, 8), span(40, 1)];
        let groups = divide(&spans, 5);
        assert_eq!(groups, [vec![span(10, 3), span(20, 2)], vec![span(22, 5)], vec![span(27, 1), span(40, 1)]]);
        assert!(divide(&[], 5).is_empty());
    }
}
