//! Whether another round makes the freeze shorter.

use super::space::Round;
use crate::options::PrecopyOptions;
use std::time::{Duration, Instant};

/// What a freeze takes beside memory, roughly: for the estimate alone.
const BESIDE: Duration = Duration::from_millis(2);
/// A freeze that copying makes longer by no more than this cannot become much shorter.
const LITTLE: Duration = Duration::from_millis(1);
/// A round that leaves more than this share of what the one before did makes no progress.
const PROGRESS: f64 = 0.8;
/// So many rounds without progress end it: one may be an accident.
const PATIENCE: u32 = 2;
/// A freeze that would last longer than the shortest that could have been had, by this factor, comes at a bad moment: it
/// is put off, but not for more than so many rounds.
const BAD_MOMENT: u32 = 2;
const MOST_PUT_OFF: u32 = 6;
const MOST_ROUNDS: u32 = 30;

/// How the rounds go.
#[derive(Debug)]
pub struct Pace {
    max_pause: Duration,
    limit: Duration,
    begun: Instant,
    /// When the last round began to look.
    looked: Option<Instant>,
    rounds: u32,
    without_progress: u32,
    last_pages: u64,
    /// Pages a second.
    rate: f64,
    expected: Duration,
    /// The shortest that was expected.
    shortest: Duration,
}

impl Pace {
    /// Before the first round.
    pub fn new(options: &PrecopyOptions) -> Pace {
        Pace {
            max_pause: options.max_pause,
            limit: options.limit,
            begun: Instant::now(),
            looked: None,
            rounds: 0,
            without_progress: 0,
            last_pages: 0,
            rate: 0.0,
            expected: Duration::MAX,
            shortest: Duration::MAX,
        }
    }

    /// Takes note of a round that has `begun` then and `took` so long; whether another is to follow.
    pub fn after(&mut self, (begun, took): (Instant, Duration), round: &Round) -> bool {
        self.rounds += 1;
        let before = self.looked.replace(begun);
        // How fast pages are written to, only a second look can tell.
        let Some(before) = before else {
            self.last_pages = round.pages;
            return round.pages > 0;
        };
        self.rate = round.pages as f64 / (begun - before).as_secs_f64().max(1e-6);
        let rest = self.rate * took.as_secs_f64();
        let per_page = round.copying.as_secs_f64() / round.pages.max(1) as f64;
        let copying = Duration::from_secs_f64(rest * per_page);
        self.expected = BESIDE + round.looking + copying;
        self.shortest = self.shortest.min(self.expected);
        let progress = (round.pages as f64) < PROGRESS * self.last_pages as f64;
        self.without_progress = if progress { 0 } else { self.without_progress + 1 };
        self.last_pages = round.pages;
        // Within what is allowed, but not as short as it can be had at once.
        let is_short = self.expected <= self.max_pause && copying < LITTLE;
        let patience = match self.expected <= self.max_pause {
            true => 1,
            false if self.expected > self.shortest * BAD_MOMENT => PATIENCE + MOST_PUT_OFF,
            false => PATIENCE,
        };
        !is_short && self.without_progress < patience && self.rounds < MOST_ROUNDS && self.begun.elapsed() < self.limit
    }

    /// How many pages a second are written to, as far as it is known.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate as u64
    }

    /// How long the freeze would last now.
    #[must_use]
    pub fn expected_pause(&self) -> Duration {
        if self.expected == Duration::MAX { BESIDE } else { self.expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(max_pause: u64) -> PrecopyOptions {
        PrecopyOptions { max_pause: Duration::from_millis(max_pause), ..PrecopyOptions::default() }
    }

    /// Rounds one behind the other, of so many pages and milliseconds; whether each was to be followed by another.
    fn rounds(pace: &mut Pace, rounds: &[(u64, u64)]) -> Vec<bool> {
        let mut begun = Instant::now();
        let mut one = |&(pages, took): &(u64, u64)| {
            let took = Duration::from_millis(took);
            let round = Round { pages, looking: Duration::from_millis(1), copying: took, untracked: 0 };
            let again = pace.after((begun, took), &round);
            begun += took;
            again
        };
        rounds.iter().map(&mut one).collect()
    }

    #[test]
    fn a_process_at_rest_is_looked_at_twice() {
        let mut pace = Pace::new(&options(20));
        assert_eq!(rounds(&mut pace, &[(1 << 18, 900), (3, 0)]), [true, false]);
        assert!(pace.expected_pause() < Duration::from_millis(5));
    }

    #[test]
    fn who_writes_faster_than_it_is_copied_is_not_waited_for() {
        let mut pace = Pace::new(&options(20));
        assert_eq!(rounds(&mut pace, &[(1 << 18, 900); 4]), [true, true, false, false]);
        assert!(pace.rate() > 200_000, "{}", pace.rate());
        assert!(pace.expected_pause() > Duration::from_millis(500));
    }

    #[test]
    fn the_freeze_does_not_come_at_a_bad_moment() {
        // It shrinks, is disturbed by something else that happens, and is as before.
        let shrinks = [(250_000, 1000), (50_000, 200), (10_000, 40), (2_000, 8), (400, 2), (20_000, 80), (30_000, 120)];
        let calm =
            [shrinks.as_slice(), &[(4_000, 16), (800, 3), (160, 1), (50, 1), (50, 1), (50, 1), (50, 1)]].concat();
        let ended = |all: &[(u64, u64)]| rounds(&mut Pace::new(&options(2)), all).iter().position(|again| !again);
        assert_eq!(ended(&calm), Some(12));
        // It comes, though, if that goes on.
        assert_eq!(ended(&[shrinks.as_slice(), &[(30_000, 120); 20]].concat()), Some(12));
    }

    #[test]
    fn a_process_without_pages_needs_no_second_look() {
        assert_eq!(rounds(&mut Pace::new(&options(20)), &[(0, 0)]), [false]);
    }
}
