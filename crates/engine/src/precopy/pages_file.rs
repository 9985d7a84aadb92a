//! The pages file of a process that is still running: where in it each page
//! lies, and how it becomes one in the order of the pagemap.
//!
//! A page gets a place when it is copied for the first time, behind all others,
//! and keeps it: copied again, it is written over. Which of them the image will
//! have is the [store](super::store)'s to say. A pagemap does not say where pages lie, they have to
//! follow one another by address ([`PagesFile::settle`]). Of a process that keeps
//! its mappings they do already, since the first round copies in that order.
//!
//! ```text
//!   copying ──keep_late──▶ nobody may wait ──settle──▶ in order
//! ```

use super::processor::Share;
use crate::Result;
use crate::memory::pages_failed as failed;
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
pub struct PagesFile {
    file: File,
    /// Bytes of all places.
    len: u64,
    /// By address, how far the place of a page is from it (wrapping).
    places: RangeMap<u64, u64>,
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

impl PagesFile {
    /// An empty file.
    pub fn new(file: File) -> PagesFile {
        PagesFile {
            file,
            len: 0,
            places: RangeMap::new(),
            gathered: Vec::new(),
            gathered_at: 0,
            late: Vec::new(),
            late_places: Vec::new(),
            keeps_late: false,
        }
    }

    /// The file itself.
    #[cfg(test)]
    pub fn file(&self) -> &File {
        &self.file
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

    /// From now on contents stay in memory until [`PagesFile::settle`].
    pub fn keep_late(&mut self) {
        self.keeps_late = true;
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

    /// Puts the pages that the image has into the order of the pagemap; nothing else is in the file then. Where too much
    /// would have to be moved, they go into a `new_file`, which takes the place of this one.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn settle(
        mut self,
        present: &RangeSet<u64>,
        new_file: impl FnOnce() -> Result<File>,
        share: &mut Share,
    ) -> Result<()> {
        self.write_gathered()?;
        let mut late = self.late.as_slice();
        for (offset, len) in &self.late_places {
            let (bytes, rest) = late.split_at(*len);
            self.file.write_all_at(bytes, *offset).map_err(|e| failed(&e))?;
            late = rest;
        }
        let wanted: Vec<Piece> = present.iter().flat_map(|range| self.pieces(range.start, range.end)).collect();
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

    #[test]
    fn large_files_are_put_in_order_as_well() {
        let mut pages = PagesFile::new(tempfile::tempfile().unwrap());
        for n in 0..40u8 {
            let start = (100 - u64::from(n)) * PAGE;
            pages.put(start, &vec![n; PAGE as usize]).unwrap();
        }
        pages.write_gathered().unwrap();
        let wanted = pages.pieces(61 * PAGE, 101 * PAGE);
        let into = tempfile::tempfile().unwrap();
        pages.copy_over(&wanted, &into, &mut Share::new(None)).unwrap();
        let mut page = [0; 1];
        for n in 0..40u8 {
            into.read_exact_at(&mut page, u64::from(n) * PAGE).unwrap();
            assert_eq!(page[0], 39 - n);
        }
    }
}
