//! Which pages of a process, or of a segment of shared memory, the image has by now, and where they go: into a file of
//! pages, or to a page server, which takes each but once.

use super::pages_file::PagesFile;
use super::processor::Share;
use super::sending::Sending;
use crate::Result;
use crate::memory::PAGE;
use crate::memory::ranges::{self, Range};
use cryonaut_image::{PageFlags, PagemapWriter};
use rangemap::RangeSet;
use std::fs::File;

/// Where pages are to go.
#[derive(Debug)]
pub enum Place {
    /// Into this empty file.
    File(File),
    Server(Sending),
}

/// Where they are.
#[derive(Debug)]
enum Pages {
    File(Box<PagesFile>),
    Server(Sending),
}

/// The pages.
#[derive(Debug)]
pub struct Store {
    pages: Pages,
    /// Pages that the image has.
    present: RangeSet<u64>,
    /// Pages that its parent has, and that are as they were.
    in_parent: RangeSet<u64>,
}

impl Store {
    /// Before there are any; `in_parent` are those that the parent of the image has.
    pub fn new(place: Place, in_parent: RangeSet<u64>) -> Store {
        let pages = match place {
            Place::File(file) => Pages::File(Box::new(PagesFile::new(file))),
            Place::Server(sending) => Pages::Server(sending),
        };
        Store { pages, present: RangeSet::new(), in_parent }
    }

    /// Gets memory ready for so many bytes that are to be kept back.
    pub fn prepare(&mut self, bytes: u64) {
        if let Pages::File(pages) = &mut self.pages {
            pages.prepare(bytes);
        }
    }

    /// Whether so many bytes, or the most that are, can be kept back in memory that is ready.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        match &self.pages {
            Pages::File(pages) => pages.has_room(bytes),
            Pages::Server(_) => true,
        }
    }

    /// From now on contents stay in memory until [`Store::settle`], unless a server takes them.
    pub fn keep_late(&mut self) {
        if let Pages::File(pages) = &mut self.pages {
            pages.keep_late();
        }
    }

    /// The image has none of these pages, unless they are put again.
    pub fn forget(&mut self, range: Range) {
        if range.0 < range.1 {
            self.present.remove(range.0..range.1);
            self.in_parent.remove(range.0..range.1);
        }
    }

    /// The image has none but those of these ranges, which ascend.
    pub fn forget_all_but(&mut self, ranges: &[Range]) {
        let mut at = 0;
        for range in ranges {
            self.forget((at, range.0));
            at = range.1;
        }
        self.forget((at, u64::MAX));
    }

    /// Puts pages that follow one another. A server is to get them in the order of their addresses, each once, and what is
    /// [forgotten](Store::forget) below them before.
    ///
    /// # Errors
    /// If the file cannot be written, or the server is gone.
    pub fn put(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let end = start + bytes.len() as u64;
        match &mut self.pages {
            Pages::File(pages) => pages.put(start, bytes)?,
            Pages::Server(sending) => sending.put(start, bytes, &self.in_parent)?,
        }
        if self.in_parent.overlaps(&(start..end)) {
            self.in_parent.remove(start..end);
        }
        if self.present.get(&start).is_none_or(|there| there.end < end) {
            self.present.insert(start..end);
        }
        Ok(())
    }

    /// Bytes that the image has.
    #[must_use]
    pub fn present_len(&self) -> u64 {
        self.present.iter().map(|range| range.end - range.start).sum()
    }

    /// Pages that the image has.
    #[must_use]
    pub fn present_ranges(&self) -> Vec<Range> {
        self.present.iter().map(|range| (range.start, range.end)).collect()
    }

    /// These pages are left to the parent of the image until they are [put](Store::put) or [forgotten](Store::forget).
    pub fn leave_to_parent(&mut self, ranges: &[Range]) {
        self.in_parent.extend(ranges.iter().map(|range| range.0..range.1));
    }

    /// Pages that are left to its parent.
    #[must_use]
    pub fn parent_ranges(&self) -> Vec<Range> {
        self.in_parent.iter().map(|range| (range.start, range.end)).collect()
    }

    /// Which pages of a range the image has not.
    #[must_use]
    pub fn absent_within(&self, range: std::ops::Range<u64>) -> Vec<std::ops::Range<u64>> {
        self.present.gaps(&range).collect()
    }

    /// Bytes that are left to its parent.
    #[must_use]
    pub fn parent_len(&self) -> u64 {
        self.in_parent.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether its pages go to a server.
    #[must_use]
    pub fn is_at_server(&self) -> bool {
        matches!(self.pages, Pages::Server(_))
    }

    /// Pages that the image has, or its parent, if they are at a server: nothing here says so.
    #[must_use]
    pub fn at_server(&self) -> Option<Vec<Range>> {
        let all = self.present.iter().chain(self.in_parent.iter()).map(|range| (range.start, range.end));
        self.is_at_server().then(|| ranges::union(all.collect()))
    }

    /// Completes the pagemap: writes it, or has the server do that, where all must have been put then.
    ///
    /// # Errors
    /// If it cannot be written, or the server is gone.
    pub fn write_map(&mut self, maps: &mut [PagemapWriter]) -> Result<()> {
        if let Pages::Server(sending) = &mut self.pages {
            return sending.finish(&self.in_parent);
        }
        let present = self.present.iter().map(|range| (range, PageFlags::PRESENT));
        let in_parent = self.in_parent.iter().map(|range| (range, PageFlags::PARENT));
        let mut all: Vec<_> = present.chain(in_parent).collect();
        all.sort_unstable_by_key(|(range, _)| range.start);
        for (range, flags) in all {
            for map in &mut *maps {
                map.push(range.start, (range.end - range.start) / PAGE, flags)?;
            }
        }
        Ok(())
    }

    /// Puts the pages in a file into the order of the pagemap, or into a `new_file` that takes its place.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn settle(self, new_file: impl FnOnce() -> Result<File>, share: &mut Share) -> Result<()> {
        match self.pages {
            Pages::File(pages) => pages.settle(&self.present, new_file, share),
            Pages::Server(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;
    use std::io::{Read, Seek};

    fn pages(first: u64, values: &[u8]) -> (u64, Vec<u8>) {
        (first * PAGE, values.iter().flat_map(|v| vec![*v; PAGE as usize]).collect())
    }

    /// Pages of a piece that is written at once.
    const LONG: usize = 16;

    fn store() -> Store {
        Store::new(Place::File(tempfile::tempfile().unwrap()), RangeSet::new())
    }

    fn put(store: &mut Store, first: u64, values: &[u8]) {
        let (start, bytes) = pages(first, values);
        store.put(start, &bytes).unwrap();
    }

    /// The first byte of each page of the file, once it is settled.
    fn settled(store: Store) -> Vec<u8> {
        let Pages::File(pages) = &store.pages else { unreachable!("they are in a file") };
        let mut file = pages.file().try_clone().unwrap();
        store.settle(|| unreachable!("all of it is short"), &mut Share::new(None)).unwrap();
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        assert!(all.chunks(PAGE as usize).all(|page| page.iter().all(|byte| *byte == page[0])));
        all.chunks(PAGE as usize).map(|page| page[0]).collect()
    }

    #[test]
    fn pages_that_are_copied_again_keep_their_place() {
        let mut store = store();
        put(&mut store, 10, &[1, 2, 3]);
        put(&mut store, 20, &[4]);
        store.keep_late();
        put(&mut store, 11, &[5]);
        assert_eq!(store.present_len(), 4 * PAGE);
        assert_eq!(settled(store), [1, 5, 3, 4]);
    }

    #[test]
    fn the_last_contents_count_however_they_are_written() {
        let mut store = store();
        put(&mut store, 10, &[1, 2]);
        put(&mut store, 12, &[3; LONG]);
        put(&mut store, 10, &[4]);
        put(&mut store, 11, &[5]);
        put(&mut store, 12, &[6]);
        put(&mut store, 10, &[7]);
        let got = settled(store);
        assert_eq!((&got[..4], got.len()), (&[7, 5, 6, 3][..], 2 + LONG));
    }

    #[test]
    fn what_comes_later_is_put_in_order() {
        let mut store = store();
        put(&mut store, 10, &[1, 2, 3]);
        put(&mut store, 20, &[4]);
        put(&mut store, 13, &[9, 8]);
        put(&mut store, 2, &[7]);
        store.forget((11 * PAGE, 12 * PAGE));
        assert_eq!(settled(store), [7, 1, 3, 9, 8, 4]);
    }

    #[test]
    fn what_has_changed_is_left_to_the_parent_no_more() {
        let in_parent = RangeSet::from_iter([PAGE..4 * PAGE, 10 * PAGE..12 * PAGE]);
        let mut store = Store::new(Place::File(tempfile::tempfile().unwrap()), in_parent);
        put(&mut store, 2, &[7]);
        store.forget((11 * PAGE, 12 * PAGE));
        let left: Vec<_> = store.in_parent.iter().map(|r| (r.start / PAGE, r.end / PAGE)).collect();
        assert_eq!((left, store.parent_len()), (vec![(1, 2), (3, 4), (10, 11)], 3 * PAGE));
        assert_eq!(settled(store), [7]);
    }

    #[test]
    fn only_what_is_left_of_the_mappings_stays() {
        let mut store = store();
        put(&mut store, 1, &[1, 2, 3, 4, 5]);
        store.forget_all_but(&[(2 * PAGE, 3 * PAGE), (5 * PAGE, 9 * PAGE)]);
        assert_eq!(settled(store), [2, 5]);
    }
}
