//! An image with its parents, and where each page of it lies.
//!
//! A page that a pagemap marks as the parent's lies in the image that the link
//! `parent` leads to, or in that one's parent, and so on. What lies nowhere is
//! an error that names the image in which it was expected.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::image_dir::ImageDir;
use crate::kind::ImageKind;
use crate::pages::{PAGE_SIZE, PageFlags, Pagemap, Run};

/// Parents that an image may have; more is a circle.
const MAX_PARENTS: usize = 1000;

/// An image with its parents.
#[derive(Debug)]
pub struct Chain<'i> {
    image: First<'i>,
    parents: Vec<ImageDir>,
}

#[derive(Debug)]
enum First<'i> {
    Lent(&'i ImageDir),
    Own(Box<ImageDir>),
}

/// A pages file: how many parents away, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Source {
    /// 0 is the image itself.
    pub level: usize,
    /// The number of `pages-N.img`.
    pub pages_id: u32,
}

/// Pages that follow one another in memory and in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First address; in shared memory, its offset.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The file.
    pub source: Source,
    /// Where in the file.
    pub offset: u64,
}

impl Piece {
    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part of it in `start..end`, if there is one.
    pub fn clip(&self, start: u64, end: u64) -> Option<Piece> {
        let (from, to) = (self.start.max(start), self.end().min(end));
        let cut = Piece { start: from, len: to.saturating_sub(from), source: self.source, offset: self.offset };
        (from < to).then(|| Piece { offset: self.offset + (from - self.start), ..cut })
    }
}

/// Where the pages of an address space are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundPages {
    /// In files, ascending by address.
    pub pieces: Vec<Piece>,
    /// With a page server (flags `LAZY` without `PRESENT`): first addresses, and the first behind, ascending.
    pub elsewhere: Vec<(u64, u64)>,
}

impl<'i> Chain<'i> {
    /// Of an image; its parents are opened when they are asked for.
    pub fn new(image: &'i ImageDir) -> Self {
        Chain { image: First::Lent(image), parents: Vec::new() }
    }

    /// Of the image in a directory.
    ///
    /// # Errors
    /// As for [`ImageDir::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Chain<'static>> {
        Ok(Chain { image: First::Own(Box::new(ImageDir::open(path)?)), parents: Vec::new() })
    }

    /// The image itself.
    pub fn image(&self) -> &ImageDir {
        match &self.image {
            First::Lent(image) => image,
            First::Own(image) => image,
        }
    }

    /// The image that is so many parents away, if there is one.
    ///
    /// # Errors
    /// As for [`ImageDir::parent`]; [`Error::Parent`] if the parents go round in a circle.
    pub fn level(&mut self, level: usize) -> Result<Option<&ImageDir>> {
        while self.parents.len() < level {
            let last = self.parents.last().unwrap_or(self.image());
            if self.parents.len() == MAX_PARENTS {
                return Err(Error::parent(last.path(), format!("has more than {MAX_PARENTS} parents, in a circle")));
            }
            let Some(next) = last.parent()? else { return Ok(None) };
            self.parents.push(next);
        }
        Ok(Some(if level == 0 { self.image() } else { &self.parents[level - 1] }))
    }

    /// The same where pages were said to be in it.
    fn expected(&mut self, level: usize) -> Result<&ImageDir> {
        if self.level(level)?.is_none() {
            let last = self.parents.last().unwrap_or(self.image());
            return Err(Error::parent(
                last.path(),
                "pages are said to be in the parent image, but there is no `parent`",
            ));
        }
        Ok(if level == 0 { self.image() } else { &self.parents[level - 1] })
    }

    /// Opens a pages file.
    ///
    /// # Errors
    /// As for [`ImageDir::open_raw`].
    pub fn pages(&mut self, source: Source) -> Result<File> {
        self.expected(source.level)?.open_raw(ImageKind::Pages, u64::from(source.pages_id))
    }

    /// The number of the pages file that a pagemap of the image itself names.
    ///
    /// # Errors
    /// As for [`Pagemap::read`].
    pub fn pages_id(&self, kind: ImageKind, id: u64) -> Result<u32> {
        Ok(Pagemap::read(self.image(), kind, id)?.pages_id())
    }

    /// The pages of an address space or a segment (`kind` is `Pagemap` or `ShmemPagemap`), ascending by address.
    ///
    /// # Errors
    /// As for [`Chain::found`]; [`Error::Elsewhere`] if pages are in none of the images, but with a page server.
    pub fn pieces(&mut self, kind: ImageKind, id: u64) -> Result<Vec<Piece>> {
        let found = self.found(kind, id)?;
        match found.elsewhere.first() {
            None => Ok(found.pieces),
            Some((address, _)) => Err(Error::Elsewhere { path: self.image().path_of(kind, id)?, address: *address }),
        }
    }

    /// The same, with those that were left to a page server.
    ///
    /// # Errors
    /// As for [`Pagemap::read`]; [`Error::Parent`] if a parent lacks what it is said to have.
    pub fn found(&mut self, kind: ImageKind, id: u64) -> Result<FoundPages> {
        let first = Pagemap::read(self.image(), kind, id)?;
        let mut out = FoundPages { pieces: Vec::with_capacity(first.runs().len()), elsewhere: Vec::new() };
        // What is still to be found: level and addresses, the first at the end.
        let mut wanted: Vec<(usize, Run)> = first.runs().iter().rev().map(|run| (0, *run)).collect();
        let mut maps = vec![first];
        while let Some((level, run)) = wanted.pop() {
            if let Some(offset) = run.offset {
                let source = Source { level, pages_id: maps[level].pages_id() };
                out.pieces.push(Piece { start: run.vaddr, len: run.len(), source, offset });
                continue;
            }
            if !run.flags.contains(PageFlags::PARENT) {
                out.elsewhere.push((run.vaddr, run.end()));
                continue;
            }
            let above = level + 1;
            if maps.len() == above {
                maps.push(Pagemap::read(self.expected(above)?, kind, id)?);
            }
            let Some(found) = maps[above].within(run.vaddr, run.end()) else {
                let missing = format!("lacks pages at {:#x} that its child says are there", run.vaddr);
                return Err(Error::parent(self.expected(above)?.path_of(kind, id)?, missing));
            };
            wanted.extend(found.into_iter().rev().map(|run| (above, run)));
        }
        Ok(out)
    }
}

impl Pagemap {
    /// The runs of `start..end`, cut to it; `None` unless all of it is there.
    pub fn within(&self, start: u64, end: u64) -> Option<Vec<Run>> {
        let first = self.runs().partition_point(|run| run.end() <= start);
        let mut out = Vec::new();
        let mut at = start;
        for run in &self.runs()[first..] {
            if at >= end {
                break;
            }
            if run.vaddr > at {
                return None;
            }
            let to = run.end().min(end);
            let offset = run.offset.map(|offset| offset + (at - run.vaddr));
            out.push(Run { vaddr: at, pages: (to - at) / PAGE_SIZE, offset, ..*run });
            at = to;
        }
        (at >= end).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_piece_lies_further_on_in_the_file() {
        let piece = Piece { start: 0x1000, len: 0x4000, source: Source { level: 0, pages_id: 1 }, offset: 8 };
        let part = |start, end| piece.clip(start, end).map(|p| (p.start, p.len, p.offset));
        assert_eq!(part(0, 0x2000), Some((0x1000, 0x1000, 8)));
        assert_eq!(part(0x4000, u64::MAX), Some((0x4000, 0x1000, 0x3008)));
        assert_eq!(part(0x2000, 0x3000), Some((0x2000, 0x1000, 0x1008)));
        assert_eq!((part(0x5000, 0x6000), part(0, 0x1000), part(0x2000, 0x2000)), (None, None, None));
    }
}
