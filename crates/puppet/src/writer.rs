//! A file of ours into which a hand writes memory of its process, by pwritev(2).
//!
//! What a process writes counts as its own: the page cache is charged to its
//! cgroup, its limit of file sizes holds (a signal would tell it so). So this is
//! for a process that is in our cgroups, and it is refused to one with such a
//! limit.
//!
//! One call fills one large folio of the page cache, as one of other programs
//! does: larger ones are made of memory that was not used for long, which a
//! virtual machine may have to get from its host first.

use crate::memory::{Remote, divide};
use crate::{Batch, Call, Error, Hand, Result, lending, numbers};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Bytes of a call, and what its place in the file is a multiple of.
const PIECE: u64 = 1 << 20;

/// The file.
#[derive(Debug, Default)]
pub struct Writer {
    under_way: Option<(Batch, Vec<(Call, Piece)>)>,
}

/// What one call is to write.
#[derive(Debug)]
pub struct Piece {
    /// Where in the file.
    pub position: u64,
    /// Of the process's memory.
    pub spans: Vec<Remote>,
}

impl Writer {
    /// Lends the file to the process. `EMFILE` if it has no free descriptors, `EFBIG` if it may write files of some size
    /// only.
    pub fn open(hand: &mut Hand, file: BorrowedFd<'_>) -> Result<Writer> {
        let opened = Self::lend(hand, file);
        if opened.is_err() {
            numbers::close_after_failure(hand);
        }
        opened.map(|()| Writer::default())
    }

    fn lend(hand: &mut Hand, file: BorrowedFd<'_>) -> Result<()> {
        let mut b = Batch::new();
        let limit = b.space(size_of::<libc::rlimit64>());
        b.call(libc::SYS_prlimit64, [0.into(), libc::RLIMIT_FSIZE.into(), 0.into(), limit.into()]);
        lending::ask_in(&mut b, hand.base);
        hand.run(&mut b)?;
        if b.read(limit)[..8] != libc::RLIM_INFINITY.to_le_bytes() {
            return Err(Error::Call { pid: hand.pid, call: "pwritev".into(), errno: Errno::FBIG });
        }
        lending::send(hand, file)?;
        let mut b = Batch::new();
        lending::receive_in(&mut b, hand.base);
        lending::hang_up_in(&mut b, hand.base);
        hand.run(&mut b)
    }

    /// The calls that it makes in the process beside those of a farewell.
    #[must_use]
    pub fn calls() -> Vec<i64> {
        [&lending::CALLS[..], &[libc::SYS_prlimit64, libc::SYS_pwritev]].concat()
    }

    /// Begins to write at this position of the file. What was begun before must be done.
    pub fn start(&mut self, hand: &mut Hand, spans: &[Remote], mut position: u64) -> Result<()> {
        let (mut b, mut calls) = (Batch::new(), Vec::new());
        for spans in divide(spans, PIECE - position % PIECE, PIECE) {
            let words = spans.iter().flat_map(|span| [span.address, span.len]);
            let vector = b.bytes(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
            let len = spans.iter().map(|span| span.len).sum::<u64>();
            // The offset is in two halves for machines of 32 bits; the second does nothing here (pwritev(2)).
            let args = [lending::number(hand.base), vector.into(), spans.len().into(), position.into(), 0.into()];
            calls.push((b.attempt(libc::SYS_pwritev, args), Piece { position, spans }));
            position += len;
        }
        hand.start(&b)?;
        self.under_way = Some((b, calls));
        Ok(())
    }

    /// Waits for it: how many bytes of each piece were written, none if that failed.
    pub fn wait(&mut self, hand: &mut Hand) -> Result<Vec<(Piece, u64)>> {
        let Some((mut b, calls)) = self.under_way.take() else { return Ok(Vec::new()) };
        hand.wait(&mut b)?;
        Ok(calls.into_iter().map(|(call, piece)| (piece, b.result(call).unwrap_or(0))).collect())
    }

    /// Takes the file back.
    pub fn close(mut self, hand: &mut Hand) -> Result<()> {
        self.wait(hand)?;
        let mut b = Batch::new();
        lending::close_in(&mut b, hand.base);
        hand.run(&mut b)
    }
}
