//! Two processes of which one works and the other, the *keeper*, waits for its end and takes over.
//!
//! They share one table of descriptors, so none is closed by the end of one. The keeper is a copy of who works, made when
//! its journal is empty: with what is in the journal at the other's end, it knows what that one knew. When the journal is
//! full, or the keeper has ended, another is made. Whoever is killed together with his keeper is survived by nobody.
//!
//! Whoever took over shares its descriptors with who comes after it, so it must not end before its time for anything that
//! fails, nor close what another has closed before: the next would do the same. If partners are lost again and again
//! nonetheless ([`Losses`]), one last keeper is made, who does not fill but only poisons what is missing.

use super::filler::Filler;
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::aside::{leave, shared_words, split};
use cryonaut_kernel::sys::process::Child;
use cryonaut_kernel::sys::wait::{Who, wait};
use cryonaut_kernel::uffd_journal::Journal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whose turn it is to take over. A keeper that was made when this was `n` may as long as it is `n` (who works has not come
/// to hand the turn to it, so that of the one before may as well: whoever says so first) or `n + 1`, and says so by
/// `n + 3`, for which no other waits.
const TURN: usize = 0;
/// Whether there is nothing left to take over.
const DONE: usize = 1;
/// The number of the pidfd of the keeper, with one added.
const PIDFD: usize = 2;
/// The words of [`Losses`].
const LOST: usize = 3;
const SINCE: usize = 4;
const STAGE: usize = 5;
const WORDS: usize = 6;

/// Losing so many partners within [`IN_A_ROW`] seconds is not somebody's kill now and then.
const MOST: u64 = 8;
const IN_A_ROW: u64 = 10;

/// Keepers are made whenever one is missing.
const USUAL: u64 = 0;
/// One more is made: the last.
const LAST: u64 = 1;
/// No more are.
const NONE: u64 = 2;

/// How often partners were lost, in words that outlive them.
#[derive(Debug, Clone, Copy)]
struct Losses(&'static [AtomicU64; WORDS]);

impl Losses {
    fn stage(self) -> u64 {
        self.0[STAGE].load(Ordering::SeqCst)
    }

    /// Counts one, at a second of the clock.
    fn note(self, now: u64) {
        if self.stage() != USUAL {
            return self.0[STAGE].store(NONE, Ordering::SeqCst);
        }
        let (lost, since) = (self.0[LOST].load(Ordering::SeqCst), self.0[SINCE].load(Ordering::SeqCst));
        let is_first = lost == 0 || now.saturating_sub(since) > IN_A_ROW;
        let lost = if is_first { 1 } else { lost + 1 };
        if is_first {
            self.0[SINCE].store(now, Ordering::SeqCst);
        }
        self.0[LOST].store(lost, Ordering::SeqCst);
        if lost >= MOST {
            self.0[STAGE].store(LAST, Ordering::SeqCst);
        }
    }
}

/// What who works has of his keeper.
#[derive(Debug)]
pub(super) struct Pair {
    words: &'static [AtomicU64; WORDS],
    keeper: Option<Keeper>,
}

#[derive(Debug)]
struct Keeper {
    child: Child,
    /// The process that works, by which the keeper sees its end.
    _watched: OwnedFd,
}

impl Pair {
    /// Nobody yet.
    pub fn new() -> Result<Pair, Errno> {
        Ok(Pair { words: shared_words()?, keeper: None })
    }

    /// Can be read from when the keeper has ended.
    pub fn keeper(&self) -> Option<BorrowedFd<'_>> {
        self.keeper.as_ref().map(|keeper| keeper.child.pidfd.as_fd())
    }

    /// Counts a keeper that has ended, and forgets it.
    fn note_end(&mut self) {
        if let Some(keeper) = self.keeper.take_if(|keeper| has_ended(keeper.child.pidfd.as_fd(), 0)) {
            keeper.dismiss();
            Losses(self.words).note(seconds());
        }
    }

    /// Whether whoever works has, or may make, somebody who takes over.
    fn may_hire(&self) -> bool {
        Losses(self.words).stage() != NONE
    }

    /// Whether a keeper that was made at this turn is the one that takes over.
    fn take_turn(&self, made: u64) -> bool {
        let from = |now| self.words[TURN].compare_exchange(now, made + 3, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        from(made + 1) || from(made)
    }

    /// There is nothing left to do for either.
    pub fn part(&self) {
        self.words[DONE].store(1, Ordering::SeqCst);
    }
}

impl Filler {
    /// Sees that there is room in the journal, and a keeper that reads it. Until then nothing may be read.
    pub(super) fn look_after_pair(&mut self) -> Result<(), Errno> {
        self.pair.note_end();
        match (self.pair.keeper.is_some(), self.journal.is_full()) {
            (true, false) => Ok(()),
            (false, _) if !self.pair.may_hire() => {
                if self.journal.is_full() {
                    self.journal = Journal::new()?;
                }
                Ok(())
            }
            _ => self.hire(),
        }
    }

    /// Makes a keeper, with an empty journal, in the place of one that there is. Returns in who works: also in the copy,
    /// without a keeper, when it has taken over. Never fails in the copy.
    pub(super) fn hire(&mut self) -> Result<(), Errno> {
        let journal = Journal::new()?;
        self.dismiss_mate();
        let watched = pidfd_open(getpid(), PidfdFlags::empty())?;
        let turn = self.pair.words[TURN].load(Ordering::SeqCst);
        if let Some(child) = split()? {
            self.pair.words[PIDFD].store(child.pidfd.as_raw_fd() as u64 + 1, Ordering::SeqCst);
            // From here on it is this one alone that takes over, and something may be read that it alone has.
            self.pair.words[TURN].store(turn + 1, Ordering::SeqCst);
            let former = self.pair.keeper.replace(Keeper { child, _watched: watched });
            self.journal = journal;
            former.into_iter().for_each(Keeper::dismiss);
            return Ok(());
        }
        // These are the other's to close.
        std::mem::forget(self.pair.keeper.take());
        while !has_ended(watched.as_fd(), 3600) {}
        if self.pair.words[DONE].load(Ordering::SeqCst) != 0 || !self.pair.take_turn(turn) {
            leave(0);
        }
        let losses = Losses(self.pair.words);
        if losses.stage() != USUAL {
            self.give_up(&format!("{MOST} processes that filled it have ended within {IN_A_ROW} seconds"));
        }
        losses.note(seconds());
        self.take_over(journal);
        self.close_own_pidfd();
        Ok(())
    }

    /// The other has left the pidfd by which it saw us.
    fn close_own_pidfd(&self) {
        let number = self.pair.words[PIDFD].swap(0, Ordering::SeqCst);
        if let Some(number) = number.checked_sub(1) {
            cryonaut_kernel::sys::aside::close_left(number as i32);
        }
    }
}

impl Keeper {
    fn dismiss(self) {
        // Fails for one that has ended.
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = wait(Who::One(self.child.pid));
    }
}

fn has_ended(pidfd: BorrowedFd<'_>, seconds: i64) -> bool {
    let mut watched = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(poll(&mut watched, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })), Ok(1))
}

fn seconds() -> u64 {
    clock_gettime(ClockId::Monotonic).tv_sec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_that_end_in_a_row_are_followed_by_one_more() {
        let losses = Losses(shared_words().unwrap());
        for at in 0..MOST {
            assert_eq!(losses.stage(), USUAL);
            losses.note(100 + at);
        }
        assert_eq!(losses.stage(), LAST);
        losses.note(1000);
        assert_eq!(losses.stage(), NONE);
    }

    #[test]
    fn partners_that_end_now_and_then_are_always_followed() {
        let losses = Losses(shared_words().unwrap());
        for at in 0..1000 {
            losses.note(at * 2);
            assert_eq!(losses.stage(), USUAL);
        }
    }
}
