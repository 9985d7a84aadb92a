//! What of an address space is copied, and how runs of its pages are put together.

use crate::memory::ranges::{self, Range};
use crate::memory::{self, PAGE};
use crate::tracking::is_tracked;
use cryonaut_kernel::pagemap::{Categories, PageRun};
use cryonaut_kernel::proc::maps::Vma;

/// Neighbouring mappings of which all, or none, are anonymous memory.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    pub range: Range,
    pub is_anonymous: bool,
}

/// Pages that are there in mappings that are not registered.
pub fn untracked(changed: &[PageRun]) -> u64 {
    let is_untracked = |run: &&PageRun| {
        run.categories.contains(Categories::PRESENT) && !run.categories.contains(Categories::WPALLOWED)
    };
    changed.iter().filter(is_untracked).map(|run| (run.end - run.start) / PAGE).sum()
}

/// Stretches of memory with all of these runs, as long as what is between them is looked at in less time than it takes to
/// ask once more. Of memory that changes meanwhile, the kernel may tell twice.
pub fn near(runs: &[PageRun]) -> Vec<Range> {
    const NEAR: u64 = 256 * PAGE;
    let mut all: Vec<Range> = Vec::new();
    for (start, end) in ranges::union(runs.iter().map(PageRun::range).collect()) {
        match all.last_mut() {
            Some(last) if start - last.1 < NEAR => last.1 = end,
            _ => all.push((start, end)),
        }
    }
    all
}

/// Pages with those that were found elsewhere, if there are any, among them.
pub fn in_order(mut runs: Vec<Range>, others: Vec<Range>) -> Vec<Range> {
    if others.is_empty() {
        return runs;
    }
    runs.extend(others);
    ranges::union(runs)
}

/// The memory that is copied.
pub fn areas(maps: &[Vma]) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for vma in maps.iter().filter(|vma| is_tracked(vma) && !memory::aio::is_mapping(vma)) {
        let is_anonymous = !vma.has_file();
        match areas.last_mut().filter(|last| last.is_anonymous == is_anonymous && last.range.1 == vma.start) {
            Some(last) => last.range.1 = vma.end,
            None => areas.push(Area { range: (vma.start, vma.end), is_anonymous }),
        }
    }
    areas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_asked_for_at_once() {
        let run = |first: u64, end: u64| PageRun { start: first * PAGE, end: end * PAGE, ..PageRun::default() };
        let all = near(&[run(1, 2), run(3, 4), run(260, 261), run(600, 601), run(600, 700), run(3, 4)]);
        assert_eq!(all, [(PAGE, 4 * PAGE), (260 * PAGE, 261 * PAGE), (600 * PAGE, 700 * PAGE)]);
    }
}
