//! Writes noted by soft-dirty bits (admin-guide/mm/soft-dirty.rst), for kernels that cannot note them by userfaultfd.
//!
//! All bits of a process are cleared at once, apart from the look at them: what is written between the two would be lost. So
//! both are done while it stands still. To clear them takes the right to write from every page, which its next write gets
//! back by a fault: that cannot be taken back, so after the last look a process has such a fault for each page that it
//! writes to once more.
//!
//! That the bit of a page is clear says only that nobody wrote. Of what was in its place before nothing is known: a page
//! that was given back (MADV_DONTNEED) and looked at again is one of zeros, and has a clear bit, too. So as unchanged count
//! pages that are the process's own beyond doubt: mapped by it alone, which those of zeros are not, or in swap. Of huge
//! pages (hugetlb) the kernel has no bits.

use crate::memory::{PAGE, ranges::Range};
use cryonaut_kernel::features::{Answer, Id, probe};
use cryonaut_kernel::pagemap::{Categories, Entry, PageRun, read_entries};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::sys::huge;
use rangemap::RangeSet;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// What clears the bits of a process, written to its /proc/PID/clear_refs.
const CLEAR: &[u8] = b"4";
/// Pages that one read tells of.
const ENTRIES: usize = 4096;

/// Whether this kernel has them.
pub fn is_available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| probe(Id::SoftDirty) == Answer::Present)
}

/// The bits of a process.
#[derive(Debug)]
pub struct SoftDirty {
    clear_refs: OwnedFd,
    /// They have not been cleared yet: what they tell is not about us.
    is_fresh: bool,
    /// Memory of which the kernel has none.
    untold: RangeSet<u64>,
    /// Which devices, by their numbers, have huge pages.
    huge: BTreeMap<(u32, u32), bool>,
    entries: Vec<Entry>,
}

impl SoftDirty {
    /// Those of a process; `is_fresh` if they were not cleared for our sake.
    ///
    /// # Errors
    /// If it has ended.
    pub fn of(task: &Task, is_fresh: bool) -> Result<SoftDirty, cryonaut_kernel::proc::Error> {
        Ok(SoftDirty::with(task.open_file("clear_refs", OFlags::WRONLY)?, is_fresh))
    }

    fn with(clear_refs: OwnedFd, is_fresh: bool) -> SoftDirty {
        let (untold, huge, entries) = (RangeSet::new(), BTreeMap::new(), vec![Entry::default(); ENTRIES]);
        SoftDirty { clear_refs, is_fresh, untold, huge, entries }
    }

    /// Takes note of mappings of which the kernel would not tell. The process stands still.
    pub fn note_mappings(&mut self, task: &Task, maps: &[Vma]) {
        self.untold.clear();
        for vma in maps.iter().filter(|vma| super::is_tracked(vma) && vma.has_file()) {
            if *self.huge.entry(vma.dev).or_insert_with(|| has_huge_pages(task, vma)) {
                self.untold.insert(vma.start..vma.end);
            }
        }
    }

    /// Pages of a range that may have changed since the bits were cleared, in the form of
    /// [`TrackedSpace::changed`](super::TrackedSpace::changed): all memory counts as registered.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn changed(&mut self, pagemap: impl AsFd, range: Range) -> Result<Vec<PageRun>, Errno> {
        let mut runs: Vec<PageRun> = Vec::new();
        let mut at = range.0;
        while at < range.1 {
            let wanted = self.entries.len().min(((range.1 - at) / PAGE) as usize);
            let told = read_entries(&pagemap, at, &mut self.entries[..wanted])?;
            if told == 0 {
                return Err(Errno::SRCH);
            }
            for entry in &self.entries[..told] {
                let page = (at, at + PAGE);
                at = page.1;
                if is_same(*entry) && !self.is_fresh && !self.untold.contains(&page.0) {
                    continue;
                }
                let categories = (entry.categories() & Categories::PRESENT) | Categories::WPALLOWED;
                match runs.last_mut() {
                    Some(last) if last.end == page.0 && last.categories == categories => last.end = page.1,
                    _ => runs.push(PageRun { start: page.0, end: page.1, categories }),
                }
            }
        }
        Ok(runs)
    }

    /// Has the next write to each page noted. The process stands still since it was looked at.
    ///
    /// # Errors
    /// `ESRCH` if it has ended.
    pub fn clear(&mut self) -> Result<(), Errno> {
        rustix::io::write(&self.clear_refs, CLEAR)?;
        self.is_fresh = false;
        Ok(())
    }
}

/// Whether a page is the process's own and has not been written to.
fn is_same(entry: Entry) -> bool {
    let page = entry.categories();
    let is_own = page.contains(Categories::SWAPPED) || page.contains(Categories::PRESENT) && entry.exclusive();
    is_own && !page.intersects(Categories::SOFT_DIRTY | Categories::FILE | Categories::GUARD)
}

/// Whether the memory of a file comes in huge pages, or nobody tells.
fn has_huge_pages(task: &Task, vma: &Vma) -> bool {
    let file = task.open_file(&vma.map_files_name(), OFlags::PATH).ok();
    file.and_then(|file| huge::page_of(file).ok()).is_none_or(|page| page.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    const SOFT_DIRTY: u64 = 1 << 55;
    const EXCLUSIVE: u64 = 1 << 56;
    const OF_FILE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;

    /// Bits as a /proc/PID/pagemap with these entries from page 16 on would tell them.
    fn pagemap(entries: &[u64]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(std::io::SeekFrom::Start(16 * 8)).unwrap();
        entries.iter().for_each(|entry| file.write_all(&entry.to_ne_bytes()).unwrap());
        file
    }

    fn bits(is_fresh: bool) -> (SoftDirty, std::fs::File) {
        let clear_refs = tempfile::tempfile().unwrap();
        (SoftDirty::with(clear_refs.try_clone().unwrap().into(), is_fresh), clear_refs)
    }

    /// The pages that may have changed, from page 16 on, and whether they are there.
    fn changed(bits: &mut SoftDirty, entries: &[u64]) -> Vec<(u64, bool)> {
        let range = (16 * PAGE, (16 + entries.len() as u64) * PAGE);
        let runs = bits.changed(pagemap(entries), range).unwrap();
        assert!(runs.iter().all(|run| run.categories.contains(Categories::WPALLOWED)));
        let pages = |run: &PageRun| {
            let is_there = run.categories.contains(Categories::PRESENT);
            (run.start / PAGE..run.end / PAGE).map(move |page| (page - 16, is_there))
        };
        runs.iter().flat_map(pages).collect()
    }

    #[test]
    fn only_what_is_surely_the_same_is_left_out() {
        let entries = [
            PRESENT | EXCLUSIVE,
            PRESENT | EXCLUSIVE | SOFT_DIRTY,
            SWAPPED,
            SWAPPED | SOFT_DIRTY,
            // Given back: nothing is there, or what the kernel has for all.
            0,
            SOFT_DIRTY,
            PRESENT,
            PRESENT | EXCLUSIVE | OF_FILE,
        ];
        let (mut bits, _) = bits(false);
        let told = changed(&mut bits, &entries);
        assert_eq!(told, [(1, true), (3, false), (4, false), (5, false), (6, true), (7, true)]);
    }

    #[test]
    fn bits_that_others_have_left_say_nothing() {
        let (mut bits, mut clear_refs) = bits(true);
        let entries = [PRESENT | EXCLUSIVE, SWAPPED];
        assert_eq!(changed(&mut bits, &entries), [(0, true), (1, false)]);
        bits.clear().unwrap();
        let mut written = String::new();
        clear_refs.rewind().unwrap();
        clear_refs.read_to_string(&mut written).unwrap();
        assert_eq!((written.as_str(), changed(&mut bits, &entries)), ("4", vec![]));
    }

    #[test]
    fn memory_without_bits_counts_as_written() {
        let (mut bits, _) = bits(false);
        bits.untold.insert(17 * PAGE..18 * PAGE);
        assert_eq!(changed(&mut bits, &[PRESENT | EXCLUSIVE; 3]), [(1, true)]);
    }

    #[test]
    fn more_pages_than_one_read_tells_of_are_one_run() {
        let (mut bits, _) = bits(false);
        let entries = vec![PRESENT | EXCLUSIVE | SOFT_DIRTY; 2 * ENTRIES + 1];
        let range = (16 * PAGE, (16 + entries.len() as u64) * PAGE);
        let runs = bits.changed(pagemap(&entries), range).unwrap();
        assert_eq!(runs.iter().map(PageRun::range).collect::<Vec<_>>(), [range]);
        assert_eq!(bits.changed(pagemap(&[]), range), Err(Errno::SRCH), "who has ended tells nothing");
    }
}
