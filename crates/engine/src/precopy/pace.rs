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
        }
    }

    /// Takes note of a round that has `begun` then and is over; whether another is to follow.
    pub fn after(&mut self, begun: Instant, round: &Round) -> bool {
        self.rounds += 1;
        let before = self.looked.replace(begun);
        // How fast pages are written to, only a second look can tell.
        let Some(before) = before else {
            self.last_pages = round.pages;
            return round.pages > 0;
        };
        self.rate = round.pages as f64 / (begun - before).as_secs_f64().max(1e-6);
        let since = begun.elapsed();
        let rest = self.rate * since.as_secs_f64();
        let per_page = round.copying.as_secs_f64() / round.pages.max(1) as f64;
        let copying = Duration::from_secs_f64(rest * per_page);
        self.expected = BESIDE + round.looking + copying;
        let progress = (round.pages as f64) < PROGRESS * self.last_pages as f64;
        self.without_progress = if progress { 0 } else { self.without_progress + 1 };
        self.last_pages = round.pages;
        // Within what is allowed, but not as short as it can be had at once.
        let is_short = self.expected <= self.max_pause && copying < LITTLE;
        !is_short
            && self.without_progress < if self.expected <= self.max_pause { 1 } else { PATIENCE }
            && self.rounds < MOST_ROUNDS
            && self.begun.elapsed() < self.limit
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

    /// A round that began so many milliseconds ago.
    fn round(pace: &mut Pace, ago: u64, pages: u64, copying: u64) -> bool {
        let begun = Instant::now().checked_sub(Duration::from_millis(ago)).unwrap();
        let copying = Duration::from_millis(copying);
        pace.after(begun, &Round { pages, looking: Duration::from_millis(1), copying, untracked: 0 })
    }

    #[test]
    fn a_process_at_rest_is_looked_at_twice() {
        let mut pace = Pace::new(&options(20));
        assert!(round(&mut pace, 1000, 1 << 18, 900));
        assert!(!round(&mut pace, 2, 3, 0));
        assert!(pace.expected_pause() < Duration::from_millis(5));
    }

    #[test]
    fn who_writes_faster_than_it_is_copied_is_not_waited_for() {
        let mut pace = Pace::new(&options(20));
        let again: Vec<bool> = (0..4u64).map(|n| round(&mut pace, 4000 - 1000 * n, 1 << 18, 900)).collect();
        assert_eq!(again, [true, true, false, false]);
        assert!(pace.rate() > 200_000, "{}", pace.rate());
        assert!(pace.expected_pause() > Duration::from_millis(500));
    }

    #[test]
    fn a_process_without_pages_needs_no_second_look() {
        assert!(!round(&mut Pace::new(&options(20)), 1, 0, 0));
    }
}
