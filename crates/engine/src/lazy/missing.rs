//! What of an address space is missing, and where each part of it is to be had.

use crate::memory::PAGE;
use std::collections::BTreeMap;

/// Pages that follow one another in memory and at their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Address of the first.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Which source.
    pub source: u32,
    /// Where they begin there.
    pub offset: u64,
}

impl Part {
    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// What of it lies between two addresses.
    pub fn clip(&self, start: u64, end: u64) -> Option<Part> {
        let (from, to) = (self.start.max(start), self.end().min(end));
        (from < to).then(|| Part { start: from, len: to - from, offset: self.offset + (from - self.start), ..*self })
    }
}

/// The missing parts, by their first address; none overlaps another.
#[derive(Debug, Clone, Default)]
pub struct Missing(BTreeMap<u64, Part>);

impl Missing {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a part, in the place of what was known there.
    pub fn add(&mut self, part: Part) {
        self.remove(part.start, part.end());
        self.0.insert(part.start, part);
    }

    /// From a page on, the rest of the part in which it lies.
    pub fn at(&self, address: u64) -> Option<Part> {
        let (_, part) = self.0.range(..=address).next_back()?;
        part.clip(address, u64::MAX)
    }

    /// What is missing from an address on, or if nothing is there, from the beginning: at most `most` bytes.
    pub fn next(&self, address: u64, most: u64) -> Option<Part> {
        let behind = || self.0.range(address..).next().or_else(|| self.0.iter().next()).map(|(_, part)| *part);
        let part = self.at(address).or_else(behind)?;
        part.clip(part.start, part.start.saturating_add(most))
    }

    /// The last of what is missing below an address: at most `most` bytes.
    pub fn before(&self, address: u64, most: u64) -> Option<Part> {
        let (_, part) = self.0.range(..address).next_back()?;
        let part = part.clip(0, address)?;
        part.clip(part.end().saturating_sub(most), u64::MAX)
    }

    /// Whether at least so many bytes are missing.
    pub fn has_at_least(&self, bytes: u64) -> bool {
        let mut sum = 0;
        self.0.values().any(|part| {
            sum += part.len;
            sum >= bytes
        })
    }

    /// What lies between two addresses is missing no more; what that was.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Part> {
        let mut gone = Vec::new();
        let first = self.0.range(..start).next_back().map_or(start, |(at, _)| *at);
        let touched: Vec<Part> = self.0.range(first..end.max(first)).map(|(_, part)| *part).collect();
        for part in touched {
            let Some(inside) = part.clip(start, end) else { continue };
            self.0.remove(&part.start);
            for rest in [part.clip(0, start), part.clip(end, u64::MAX)].into_iter().flatten() {
                self.0.insert(rest.start, rest);
            }
            gone.push(inside);
        }
        gone
    }
}

/// The page of an address.
pub fn page_of(address: u64) -> u64 {
    address & !(PAGE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[(u64, u64, u64)]) -> Missing {
        let mut missing = Missing::default();
        for &(start, len, offset) in parts {
            missing.add(Part { start: start * PAGE, len: len * PAGE, source: 0, offset: offset * PAGE });
        }
        missing
    }

    fn all(missing: &Missing) -> Vec<(u64, u64, u64)> {
        missing.0.values().map(|p| (p.start / PAGE, p.len / PAGE, p.offset / PAGE)).collect()
    }

    #[test]
    fn what_is_removed_leaves_the_rest() {
        let mut missing = of(&[(10, 10, 0), (30, 5, 10)]);
        missing.remove(12 * PAGE, 14 * PAGE);
        assert_eq!(all(&missing), [(10, 2, 0), (14, 6, 4), (30, 5, 10)]);
        missing.remove(0, 11 * PAGE);
        missing.remove(19 * PAGE, 31 * PAGE);
        assert_eq!(all(&missing), [(11, 1, 1), (14, 5, 4), (31, 4, 11)]);
        missing.remove(0, u64::MAX);
        assert!(missing.is_empty());
    }

    #[test]
    fn a_page_is_found_with_what_follows_it() {
        let missing = of(&[(10, 10, 0), (30, 5, 10)]);
        let at = |page: u64| missing.at(page * PAGE).map(|p| (p.start / PAGE, p.len / PAGE, p.offset / PAGE));
        assert_eq!((at(9), at(10), at(15), at(20)), (None, Some((10, 10, 0)), Some((15, 5, 5)), None));
        let next =
            |page: u64, most: u64| missing.next(page * PAGE, most * PAGE).map(|p| (p.start / PAGE, p.len / PAGE));
        assert_eq!((next(0, 4), next(18, 4), next(20, 4)), (Some((10, 4)), Some((18, 2)), Some((30, 4))));
        assert_eq!(next(35, 100), Some((10, 10)));
        let before =
            |page: u64, most: u64| missing.before(page * PAGE, most * PAGE).map(|p| (p.start / PAGE, p.offset / PAGE));
        assert_eq!((before(100, 3), before(33, 2), before(30, 4)), (Some((32, 12)), Some((31, 11)), Some((16, 6))));
        assert_eq!((before(13, 9), before(10, 9)), (Some((10, 0)), None));
        assert!(missing.has_at_least(15 * PAGE) && !missing.has_at_least(16 * PAGE));
    }
}
