//! A file of ours into which a hand writes memory of its process, by writev(2).
//!
//! What a process writes counts as its own: the page cache is charged to its
//! cgroup, its limit of file sizes holds (a signal would tell it so). So this is
//! for a process that is in our cgroups, and it is refused to one with such a
//! limit.
//!
//! Both of us have one open file, so what we write comes behind what it has
//! written, and the other way round.

use crate::memory::Remote;
use crate::{Batch, Call, Error, Hand, Result, lending, numbers};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// The file.
#[derive(Debug, Default)]
pub struct Writer {
    under_way: Option<(Batch, Call)>,
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
            return Err(Error::Call { pid: hand.pid, call: "writev".into(), errno: Errno::FBIG });
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
        [&lending::CALLS[..], &[libc::SYS_prlimit64, libc::SYS_writev]].concat()
    }

    /// Begins to write at the file's position. What was begun before must be done.
    pub fn start(&mut self, hand: &mut Hand, spans: &[Remote]) -> Result<()> {
        let mut b = Batch::new();
        let words = spans.iter().flat_map(|span| [span.address, span.len]);
        let vector = b.bytes(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
        let call = b.attempt(libc::SYS_writev, [lending::number(hand.base), vector.into(), spans.len().into()]);
        hand.start(&b)?;
        self.under_way = Some((b, call));
        Ok(())
    }

    /// Waits for it: how many bytes were written, none if that failed.
    pub fn wait(&mut self, hand: &mut Hand) -> Result<u64> {
        let Some((mut b, call)) = self.under_way.take() else { return Ok(0) };
        hand.wait(&mut b)?;
        Ok(b.result(call).unwrap_or(0))
    }

    /// Takes the file back.
    pub fn close(mut self, hand: &mut Hand) -> Result<()> {
        self.wait(hand)?;
        let mut b = Batch::new();
        lending::close_in(&mut b, hand.base);
        hand.run(&mut b)
    }
}
