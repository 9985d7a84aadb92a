//! An address space with what is missing of it, as the program changes it.
//!
//! Who moves or unmaps memory tells of it after having done so, and waits until it has been read. Of two who are at it at
//! once, the one that was later may tell first: another's new mapping may lie already where, by what was told, the old one
//! is still. Then the old one is *displaced*, and what is told of that range next is told of it. Moving memory is told
//! twice, first of the move, then of the unmapping of where it was; meanwhile somebody may have moved something else there.
//! So the second is expected, and means nothing.
//!
//! While anything is not told yet, the kernel fills nothing (EAGAIN). Once it has, nothing is displaced or expected any more
//! ([`Space::is_quiet`]).
//!
//! Not followed: where the memory of another thread is in a child that is born while that thread moves it. The child's
//! program cannot know it either.

use super::missing::{Missing, Part, page_of};
use crate::memory::ranges::{self, Range};
use cryonaut_kernel::uffd::{Event, Uffd};
use std::sync::Arc;

/// An address space.
#[derive(Debug)]
pub struct Space {
    /// Of which process, or forked from that.
    pub pid: i32,
    pub uffd: Arc<Uffd>,
    pub missing: Missing,
    /// Pages that somebody waits for.
    pub faults: Vec<u64>,
    /// Where filling goes on while nobody waits: behind what was last waited for.
    pub next: u64,
    /// From where on the filler's mate has been told to fill.
    pub ordered: u64,
    /// What the userfaultfd hears of, ascending.
    areas: Vec<Range>,
    displaced: Vec<(Range, Vec<Part>)>,
    expected: Vec<Range>,
}

impl Space {
    /// One of a process, with the ranges that are registered.
    pub fn new(pid: i32, uffd: Uffd, missing: Missing, areas: Vec<Range>) -> Space {
        let areas = ranges::union(areas);
        let (faults, displaced, expected) = Default::default();
        let uffd = Arc::new(uffd);
        Space { pid, uffd, missing, faults, next: 0, ordered: u64::MAX, areas, displaced, expected }
    }

    /// Follows what the program has done. Gives the address space of a child.
    pub fn follow(&mut self, event: Event) -> Option<Space> {
        match event {
            Event::Pagefault { address, .. } => self.faults.push(page_of(address)),
            Event::Fork(uffd) => return Some(Space::new(self.pid, uffd, self.missing.clone(), self.areas.clone())),
            Event::Remap { from, to, len } => self.relocate(from, to, len),
            Event::Remove { start, end } => drop(self.missing.remove(start, end)),
            Event::Unmap { start, end } => self.unmap((start, end)),
        }
        None
    }

    fn relocate(&mut self, from: u64, to: u64, len: u64) {
        let (old, new) = ((from, from + len), (to, to + len));
        let moved = self.take(old);
        if self.areas.iter().any(|area| overlap(*area, new)) {
            self.displaced.push((new, self.missing.remove(new.0, new.1)));
        }
        for part in moved {
            self.missing.add(Part { start: part.start - from + to, ..part });
        }
        self.areas.push(new);
        self.areas = ranges::union(std::mem::take(&mut self.areas));
        self.expected.push(old);
    }

    fn unmap(&mut self, range: Range) {
        if let Some(index) = self.expected.iter().position(|expected| *expected == range) {
            self.expected.swap_remove(index);
        } else {
            self.take(range);
        }
    }

    /// What is told of a range, is told of what is displaced there first.
    fn take(&mut self, range: Range) -> Vec<Part> {
        let (mut parts, mut rest) = (Vec::new(), vec![range]);
        self.displaced.retain(|(old, theirs)| {
            if overlap(*old, range) {
                parts.extend(theirs.iter().filter_map(|part| part.clip(range.0, range.1)));
                rest = ranges::without(&rest, &[*old]);
            }
            !overlap(*old, range)
        });
        for (start, end) in &rest {
            parts.extend(self.missing.remove(*start, *end));
        }
        self.areas = ranges::without(&self.areas, &rest);
        parts
    }

    /// The kernel has filled something. Whether that changes how anything later is understood.
    pub fn is_quiet(&mut self) -> bool {
        let changes = !self.displaced.is_empty() || !self.expected.is_empty();
        self.displaced.clear();
        self.expected.clear();
        changes
    }
}

fn overlap(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;
    use std::os::fd::OwnedFd;

    /// Areas A at 10 and B at 30, of four pages, of which all are missing.
    fn space() -> Space {
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let mut missing = Missing::default();
        for start in [10, 30] {
            missing.add(Part { start: start * PAGE, len: 4 * PAGE, source: 0, offset: start * PAGE });
        }
        Space::new(1, Uffd::from_fd(file), missing, vec![area(10), area(30)])
    }

    fn area(page: u64) -> Range {
        (page * PAGE, (page + 4) * PAGE)
    }

    fn relocate(space: &mut Space, from: u64, to: u64) {
        assert!(space.follow(Event::Remap { from: from * PAGE, to: to * PAGE, len: 4 * PAGE }).is_none());
    }

    fn unmap(space: &mut Space, page: u64) {
        assert!(space.follow(Event::Unmap { start: page * PAGE, end: (page + 4) * PAGE }).is_none());
    }

    /// What is missing at a page: which page of the source.
    fn at(space: &Space, page: u64) -> Option<u64> {
        space.missing.at(page * PAGE).map(|part| part.offset / PAGE)
    }

    #[test]
    fn what_is_moved_where_another_was_stays() {
        let mut space = space();
        relocate(&mut space, 10, 50);
        relocate(&mut space, 30, 10);
        // That of the first move; the second's is still to come.
        unmap(&mut space, 10);
        assert_eq!((at(&space, 10), at(&space, 30), at(&space, 50)), (Some(30), None, Some(10)));
        unmap(&mut space, 30);
        unmap(&mut space, 10);
        assert_eq!((at(&space, 10), at(&space, 50)), (None, Some(10)));
    }

    #[test]
    fn who_was_later_may_tell_first() {
        let mut space = space();
        relocate(&mut space, 30, 10);
        relocate(&mut space, 10, 50);
        unmap(&mut space, 10);
        unmap(&mut space, 30);
        assert_eq!((at(&space, 10), at(&space, 30), at(&space, 50)), (Some(30), None, Some(10)));
    }

    #[test]
    fn who_was_later_may_have_come_in_parts() {
        let mut space = space();
        for half in 0..2 {
            let (from, to) = ((30 + 2 * half) * PAGE, (10 + 2 * half) * PAGE);
            assert!(space.follow(Event::Remap { from, to, len: 2 * PAGE }).is_none());
        }
        relocate(&mut space, 10, 50);
        let found = [10, 12, 50, 52, 30, 32].map(|page| at(&space, page));
        assert_eq!(found, [Some(30), Some(32), Some(10), Some(12), None, None]);
    }

    #[test]
    fn an_unmapping_may_be_told_late() {
        let mut space = space();
        relocate(&mut space, 30, 10);
        unmap(&mut space, 10);
        unmap(&mut space, 30);
        assert_eq!((at(&space, 10), at(&space, 30)), (Some(30), None));
        assert!(!space.is_quiet());
        unmap(&mut space, 10);
        assert_eq!(at(&space, 10), None);
    }

    #[test]
    fn what_was_expected_does_not_come_any_more_once_it_is_quiet() {
        let mut space = space();
        // By MREMAP_DONTUNMAP.
        relocate(&mut space, 10, 50);
        assert!(space.is_quiet());
        relocate(&mut space, 50, 10);
        unmap(&mut space, 50);
        unmap(&mut space, 10);
        assert_eq!((at(&space, 10), at(&space, 50)), (None, None));
    }
}
