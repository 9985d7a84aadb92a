//! Who gets the processors while memory is copied: the tree, whose work this is not, or we.
//!
//! To copy all of it takes long, so it is done with what nobody else wants, and with a share of one processor where others
//! want all. That is measured by how long we had to wait for one ourselves, which also tells of those to whom a nice value
//! of ours means nothing, in other cgroups and sessions (sched(7), "The autogroup feature"). What has to be copied again is a race with those
//! who write: rounds that take half as long leave half as much to the freeze. So they come before others.

use cryonaut_kernel::proc::Task;
use rustix::fs::OFlags;
use rustix::process::{getpriority_process, setpriority_process};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Where others wait, one in so many parts of a processor's time is ours.
const PARTS: u32 = 4;
/// Time on the processor that is looked at together: some slices of the scheduler's, or nobody need have waited.
const SPELL: Duration = Duration::from_millis(10);
/// Who waited for less than one in so many parts of the time that he ran had the processor for himself.
const UNDISTURBED: u32 = 4;
/// Nice values by which the rounds come before others.
const AHEAD: i32 = 10;

/// The share of a thread that copies much. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Share {
    /// `/proc/thread-self/schedstat`; `None` where the kernel does not tell.
    schedstat: Option<File>,
    last: Times,
    /// From when on it takes what it gets.
    until: Option<Instant>,
}

/// Of a thread, since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Times {
    ran: Duration,
    /// Could have run, and had no processor.
    waited: Duration,
}

impl Share {
    /// Of the calling thread; with a time `until` which others come first, if there is one.
    pub fn new(until: Option<Instant>) -> Share {
        let schedstat = Task::current_thread().and_then(|task| task.open_file("schedstat", OFlags::RDONLY));
        let schedstat = schedstat.ok().map(File::from);
        let last = schedstat.as_ref().and_then(Times::read).unwrap_or_default();
        Share { schedstat, last, until }
    }

    /// From now on others come first without end.
    pub fn without_end(&mut self) {
        self.until = None;
    }

    /// From now on nobody does.
    pub fn no_more(&mut self) {
        self.until = Some(Instant::now());
    }

    /// Between two pieces of work: lets others run for as long as they are to.
    pub fn keep(&mut self) {
        let Some(now) = self.schedstat.as_ref().and_then(Times::read) else { return };
        let spell = Times { ran: now.ran - self.last.ran, waited: now.waited - self.last.waited };
        if spell.ran < SPELL {
            return;
        }
        self.last = now;
        if self.until.is_none_or(|until| Instant::now() < until) {
            let rest = spell.rest();
            if !rest.is_zero() {
                std::thread::sleep(rest);
            }
        }
    }
}

impl Times {
    fn read(schedstat: &File) -> Option<Times> {
        let mut text = [0; 64];
        let len = schedstat.read_at(&mut text, 0).ok()?;
        Times::parse(std::str::from_utf8(&text[..len]).ok()?)
    }

    /// Nanoseconds, and how often it ran.
    fn parse(text: &str) -> Option<Times> {
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().map(Duration::from_nanos));
        Some(Times { ran: numbers.next()?.ok()?, waited: numbers.next()?.ok()? })
    }

    /// How long others are to run after this, so that it was no more than its share.
    fn rest(self) -> Duration {
        if self.waited * UNDISTURBED < self.ran {
            return Duration::ZERO;
        }
        (self.ran * (PARTS - 1)).saturating_sub(self.waited)
    }
}

/// Does short work before what others do, if we may.
pub fn ahead_of_others<R>(work: impl FnOnce() -> R) -> R {
    // Of the calling thread, whatever it is called.
    let usual = getpriority_process(None).ok().filter(|usual| setpriority_process(None, usual - AHEAD).is_ok());
    let done = work();
    if let Some(usual) = usual {
        // To less, everybody may go.
        let restored = setpriority_process(None, usual);
        debug_assert!(restored.is_ok());
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(ran: u64, waited: u64) -> Times {
        Times { ran: Duration::from_millis(ran), waited: Duration::from_millis(waited) }
    }

    #[test]
    fn who_has_the_processor_for_himself_goes_on() {
        assert_eq!(times(10, 0).rest(), Duration::ZERO);
        assert_eq!(times(10, 2).rest(), Duration::ZERO);
    }

    #[test]
    fn where_others_wait_it_is_a_share() {
        for (ran, waited) in [(10, 3), (10, 10), (20, 15)] {
            let all = Duration::from_millis(ran + waited) + times(ran, waited).rest();
            assert_eq!(all, Duration::from_millis(ran) * PARTS);
        }
        // He has waited long enough.
        assert_eq!(times(10, 50).rest(), Duration::ZERO);
    }

    #[test]
    fn the_kernel_tells() {
        assert_eq!(Times::parse("3000000 2000000 17\n"), Some(times(3, 2)));
        assert_eq!(Times::parse("0"), None);
        let mut share = Share::new(None);
        let begun = Instant::now();
        while begun.elapsed() < 3 * SPELL {
            share.keep();
        }
        assert!(share.schedstat.is_none() || share.last.ran >= SPELL || begun.elapsed() > 6 * SPELL);
    }

    #[test]
    fn priority_is_as_it_was() {
        let usual = getpriority_process(None).unwrap();
        let meanwhile = ahead_of_others(|| getpriority_process(None).unwrap());
        assert!(meanwhile <= usual);
        assert_eq!(getpriority_process(None).unwrap(), usual);
    }
}
