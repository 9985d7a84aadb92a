//! The pages file of a process that is still running: where in it each page
//! lies, and how it becomes one in the order of the pagemap.
//!
//! A page gets a place when it is copied for the first time, behind all others,
//! and keeps it: copied again, it is written over. What the image will have is
//! said by `present` alone. A pagemap does not say where pages lie, they have to
//! follow one another by address ([`Store::settle`]). Of a process that keeps
//! its mappings they do already, since the first round copies in that order.
//!
//! ```text
//!   copying ──keep_late──▶ nobody may wait ──settle──▶ in order
//! ```

use super::processor::Share;
use crate::Result;
use crate::memory::pages_failed as failed;
use crate::memory::ranges::Range;
use cryonaut_image::PageFlags;
use cryonaut_image::PagemapWriter;
use rangemap::{RangeMap, RangeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// Bytes at the end of a file that are put in order by way of our own memory.
const SHORT_TAIL: u64 = 64 << 20;
/// Bytes of late contents from which on they are written while the tree stands still after all.
const MOST_LATE: usize = 128 << 20;
/// Bytes that follow one another in the file and are written with one call, though they came piece by piece.
const GATHERED: usize = 1 << 20;
/// Pieces from this length on are not worth another copy.
const LONG_PIECE: usize = 64 << 10;
/// Bytes of a long piece that are copied from file to file at a time.
const COPIED_AT_ONCE: u64 = 8 << 20;
/// Bytes of late contents for which memory is got ready at least.
const LATE_ROOM: usize = 4 << 20;

/// The file.
#[derive(Debug)]
pub struct Store {
    file: File,
    /// Bytes of all places.
    len: u64,
    /// By address, how far the place of a page is from it (wrapping).
    places: RangeMap<u64, u64>,
    /// Pages that the image has.
    present: RangeSet<u64>,
    /// Pages that its parent has, and that are as they were.
    in_parent: RangeSet<u64>,
    /// Short pieces that are not in the file yet, and the place of the first: they follow one another there.
    gathered: Vec<u8>,
    gathered_at: u64,
    /// Contents that are not in the file yet, one behind the other.
    late: Vec<u8>,
    /// Where in the file they belong: places and lengths.
    late_places: Vec<(u64, usize)>,
    /// Whether contents are kept back from the file.
    keeps_late: bool,
}

/// Pages that follow one another in memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: u64,
    len: u64,
    offset: u64,
}

impl Store {
    /// Of an empty file; `in_parent` are the pages that the parent of the image has.
    pub fn new(file: File, in_parent: RangeSet<u64>) -> Store {
        Store {
            in_parent,
            file,
            len: 0,
            places: RangeMap::new(),
            present: RangeSet::new(),
            gathered: Vec::new(),
            gathered_at: 0,
            late: Vec::new(),
            late_places: Vec::new(),
            keeps_late: false,
        }
    }

    /// Gets memory ready for so many bytes that are to be kept back. Without, each page of it would be faulted in and
    /// cleared while the tree stands still, which takes longer than to copy it.
    pub fn prepare(&mut self, bytes: u64) {
        let room = (bytes as usize).clamp(LATE_ROOM, MOST_LATE);
        // Memory that was written to is there.
        self.late.resize(room, 1);
        self.late.clear();
        self.late_places.resize(room / crate::memory::PAGE as usize, (1, 1));
        self.late_places.clear();
    }

    /// Whether so many bytes, or the most that are, can be kept back in memory that is ready.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        self.late.capacity() as u64 >= bytes.min(MOST_LATE as u64)
    }

    /// From now on contents stay in memory until [`Store::settle`].
    pub fn keep_late(&mut self) {
        self.keeps_late = true;
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

    /// Puts pages that follow one another.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let end = start + bytes.len() as u64;
        self.give_places(start, end);
        for piece in self.pieces(start, end) {
            let bytes = &bytes[(piece.start - start) as usize..][..piece.len as usize];
            if self.keeps_late && self.late.len() < MOST_LATE {
                self.late_places.push((piece.offset, bytes.len()));
                self.late.extend_from_slice(bytes);
            } else {
                self.write(bytes, piece.offset)?;
            }
        }
        if self.in_parent.overlaps(&(start..end)) {
            self.in_parent.remove(start..end);
        }
        if self.present.get(&start).is_none_or(|there| there.end < end) {
            self.present.insert(start..end);
        }
        Ok(())
    }

    /// Pages that are written to here and there lie one behind the other in the file: a call for each would take longer
    /// than to copy them together.
    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let follows = self.gathered_at + self.gathered.len() as u64 == offset;
        if !follows || self.gathered.len() + bytes.len() > GATHERED {
            self.write_gathered()?;
        }
        if bytes.len() >= LONG_PIECE {
            self.write_gathered()?;
            return self.file.write_all_at(bytes, offset).map_err(|e| failed(&e));
        }
        if self.gathered.is_empty() {
            self.gathered_at = offset;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn write_gathered(&mut self) -> Result<()> {
        self.file.write_all_at(&self.gathered, self.gathered_at).map_err(|e| failed(&e))?;
        self.gathered.clear();
        Ok(())
    }

    fn give_places(&mut self, start: u64, end: u64) {
        let gaps: Vec<_> = self.places.gaps(&(start..end)).collect();
        for gap in gaps {
            let len = gap.end - gap.start;
            let distance = self.len.wrapping_sub(gap.start);
            self.places.insert(gap, distance);
            self.len += len;
        }
    }

    /// Where the pages of a range lie, all of which have a place.
    fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let piece = |(range, distance): (&std::ops::Range<u64>, &u64)| {
            let (from, to) = (range.start.max(start), range.end.min(end));
            Piece { start: from, len: to - from, offset: from.wrapping_add(*distance) }
        };
        self.places.overlapping(&(start..end)).map(piece).collect()
    }

    /// Bytes that the image has.
    #[must_use]
    pub fn present_len(&self) -> u64 {
        self.present.iter().map(|range| range.end - range.start).sum()
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

    /// Writes the pagemap.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_map(&self, maps: &mut [PagemapWriter]) -> Result<()> {
        let present = self.present.iter().map(|range| (range, PageFlags::PRESENT));
        let in_parent = self.in_parent.iter().map(|range| (range, PageFlags::PARENT));
        let mut all: Vec<_> = present.chain(in_parent).collect();
        all.sort_unstable_by_key(|(range, _)| range.start);
        for (range, flags) in all {
            for map in &mut *maps {
                map.push(range.start, (range.end - range.start) / crate::memory::PAGE, flags)?;
            }
        }
        Ok(())
    }

    /// Puts the pages into the order of the pagemap; nothing else is in the file then. Where too much would have to be
    /// moved, they go into a `new_file`, which takes the place of this one.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn settle(mut self, new_file: impl FnOnce() -> Result<File>, share: &mut Share) -> Result<()> {
        self.write_gathered()?;
        let mut late = self.late.as_slice();
        for (offset, len) in &self.late_places {
            let (bytes, rest) = late.split_at(*len);
            self.file.write_all_at(bytes, *offset).map_err(|e| failed(&e))?;
            late = rest;
        }
        let wanted: Vec<Piece> = self.present.iter().flat_map(|range| self.pieces(range.start, range.end)).collect();
        let mut ordered = 0;
        let in_place = wanted.iter().take_while(|piece| {
            let fits = piece.offset == ordered;
            ordered += if fits { piece.len } else { 0 };
            fits
        });
        let rest = &wanted[in_place.count()..];
        let tail: u64 = rest.iter().map(|piece| piece.len).sum();
        match tail {
            0 => {}
            1..=SHORT_TAIL => self.rewrite(rest, ordered)?,
            _ => return self.copy_over(&wanted, &new_file()?, share),
        }
        self.file.set_len(ordered + tail).map_err(|e| failed(&e))
    }

    /// Writes pieces from `at` on, by way of memory.
    fn rewrite(&self, pieces: &[Piece], at: u64) -> Result<()> {
        let mut bytes = vec![0; pieces.iter().map(|piece| piece.len as usize).sum()];
        let mut rest = bytes.as_mut_slice();
        for piece in pieces {
            let (now, later) = rest.split_at_mut(piece.len as usize);
            self.file.read_exact_at(now, piece.offset).map_err(|e| failed(&e))?;
            rest = later;
        }
        self.file.write_all_at(&bytes, at).map_err(|e| failed(&e))
    }

    /// Writes all pieces to another file.
    fn copy_over(&self, pieces: &[Piece], mut into: &File, share: &mut Share) -> Result<()> {
        let mut from = &self.file;
        for piece in pieces {
            from.seek(SeekFrom::Start(piece.offset)).map_err(|e| failed(&e))?;
            let mut left = piece.len;
            while left > 0 {
                let len = left.min(COPIED_AT_ONCE);
                let copied = std::io::copy(&mut from.take(len), &mut into).map_err(|e| failed(&e))?;
                if copied != len {
                    return Err(failed(&std::io::ErrorKind::UnexpectedEof.into()));
                }
                left -= len;
                share.keep();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    fn pages(first: u64, values: &[u8]) -> (u64, Vec<u8>) {
        (first * PAGE, values.iter().flat_map(|v| vec![*v; PAGE as usize]).collect())
    }

    fn store() -> Store {
        Store::new(tempfile::tempfile().unwrap(), RangeSet::new())
    }

    fn put(store: &mut Store, first: u64, values: &[u8]) {
        let (start, bytes) = pages(first, values);
        store.put(start, &bytes).unwrap();
    }

    /// The first byte of each page of the file, once it is settled.
    fn settled(store: Store) -> Vec<u8> {
        let mut file = store.file.try_clone().unwrap();
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
        assert_eq!((store.len, store.present_len()), (4 * PAGE, 4 * PAGE));
        assert_eq!(settled(store), [1, 5, 3, 4]);
    }

    #[test]
    fn the_last_contents_count_however_they_are_written() {
        let mut store = store();
        put(&mut store, 10, &[1, 2]);
        put(&mut store, 12, &vec![3; LONG_PIECE / PAGE as usize]);
        put(&mut store, 10, &[4]);
        put(&mut store, 11, &[5]);
        put(&mut store, 12, &[6]);
        put(&mut store, 10, &[7]);
        let got = settled(store);
        assert_eq!((&got[..4], got.len()), (&[7, 5, 6, 3][..], 2 + LONG_PIECE / PAGE as usize));
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
        let mut store = Store::new(tempfile::tempfile().unwrap(), in_parent);
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

    #[test]
    fn large_files_are_put_in_order_as_well() {
        let mut store = store();
        for n in 0..40u8 {
            put(&mut store, 100 - u64::from(n), &[n]);
        }
        store.write_gathered().unwrap();
        let wanted: Vec<_> = store.present.iter().flat_map(|r| store.pieces(r.start, r.end)).collect();
        let into = tempfile::tempfile().unwrap();
        store.copy_over(&wanted, &into, &mut Share::new(None)).unwrap();
        let mut page = [0; 1];
        for n in 0..40u8 {
            into.read_exact_at(&mut page, u64::from(n) * PAGE).unwrap();
            assert_eq!(page[0], 39 - n);
        }
    }
}
