//! The private pages that an image has for a process, and where each lies: in
//! a pages file of the image itself, or of the parent that it names, or of the
//! parent's parent.

use super::{PAGE, extras::Extras, vma::status};
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_image::{ImageDir, ImageKind, PageFlags, Pagemap, Run};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Parents that an image may have; more is a circle.
const MAX_PARENTS: usize = 1000;

/// An image with its parents.
#[derive(Debug)]
pub struct Store<'i> {
    images: &'i ImageDir,
    parents: Vec<ImageDir>,
}

/// A pages file: how many parents away, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Source {
    level: usize,
    pages_id: u32,
}

/// Pages that follow one another in memory and in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First address.
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

impl<'i> Store<'i> {
    /// Of an image; its parents are opened when they are asked for.
    pub fn new(images: &'i ImageDir) -> Self {
        Store { images, parents: Vec::new() }
    }

    fn level(&mut self, level: usize) -> Result<&ImageDir> {
        while self.parents.len() < level {
            let last = self.parents.last().unwrap_or(self.images);
            let at = last.path().display().to_string();
            let next = last.parent()?.filter(|_| self.parents.len() < MAX_PARENTS);
            self.parents.push(next.ok_or_else(|| Error::bad_image(at, "pages are in its parent, but it has none"))?);
        }
        Ok(if level == 0 { self.images } else { &self.parents[level - 1] })
    }

    /// Opens a pages file.
    pub fn open(&mut self, source: Source) -> Result<File> {
        Ok(self.level(source.level)?.open_raw(ImageKind::Pages, u64::from(source.pages_id))?)
    }

    /// The pages of a process, ascending by address.
    fn pieces(&mut self, pid: i32) -> Result<Vec<Piece>> {
        let mut maps = vec![Pagemap::read(self.images, ImageKind::Pagemap, pid as u64)?];
        let mut out = Vec::with_capacity(maps[0].runs().len());
        // What is still to be found: level and addresses, the first at the end.
        let mut wanted: Vec<(usize, Run)> = maps[0].runs().iter().rev().map(|run| (0, *run)).collect();
        while let Some((level, run)) = wanted.pop() {
            if let Some(offset) = run.offset {
                let source = Source { level, pages_id: maps[level].pages_id() };
                out.push(Piece { start: run.vaddr, len: run.len(), source, offset });
                continue;
            }
            if !run.flags.contains(PageFlags::PARENT) {
                return Err(Error::unsupported(
                    Object::Mapping(pid, run.vaddr, "memory".into()),
                    "its pages were left to a server of pages (--lazy-pages), not written to the image",
                    "",
                ));
            }
            let above = level + 1;
            if maps.len() == above {
                let map = Pagemap::read(self.level(above)?, ImageKind::Pagemap, pid as u64)?;
                maps.push(map);
            }
            let found = within(&maps[above], run.vaddr, run.end())
                .ok_or_else(|| Error::bad_image(format!("pagemap-{pid}.img"), missing(run.vaddr)))?;
            wanted.extend(found.into_iter().rev().map(|run| (above, run)));
        }
        Ok(out)
    }
}

fn missing(address: u64) -> String {
    format!("the pages from {address:#x} on are said to be in the parent image, and are not")
}

/// The runs of `start..end`, which must all be there.
fn within(map: &Pagemap, start: u64, end: u64) -> Option<Vec<Run>> {
    let first = map.runs().partition_point(|run| run.end() <= start);
    let mut out = Vec::new();
    let mut at = start;
    for run in &map.runs()[first..] {
        if at >= end {
            break;
        }
        if run.vaddr > at {
            return None;
        }
        let to = run.end().min(end);
        let offset = run.offset.map(|offset| offset + (at - run.vaddr));
        out.push(Run { vaddr: at, pages: (to - at) / PAGE, offset, ..*run });
        at = to;
    }
    (at >= end).then_some(out)
}

/// The private pages of a process.
#[derive(Debug)]
pub struct Contents {
    /// Ascending by address.
    pub pieces: Vec<Piece>,
    /// The pages of the vdso that the program was started with.
    vdso: Vec<Piece>,
    /// What is kept of the process beside its pages.
    pub extras: Extras,
}

impl Contents {
    /// What an image has for a process.
    pub fn read(store: &mut Store<'_>, pid: i32, vmas: &[VmaEntry], extras: Extras) -> Result<Self> {
        let pieces = store.pieces(pid)?;
        // The vdso's pages are those of the kernel on which the program was started.
        let Some(vdso) = vmas.iter().find(|v| v.status & status::VDSO != 0) else {
            return Ok(Contents { pieces, vdso: Vec::new(), extras });
        };
        let inside = pieces.iter().filter_map(|p| p.clip(vdso.start, vdso.end)).collect();
        let outside = |p: Piece| [p.clip(0, vdso.start), p.clip(vdso.end, u64::MAX)];
        Ok(Contents { pieces: pieces.into_iter().flat_map(outside).flatten().collect(), vdso: inside, extras })
    }

    /// The code of the vdso that the program was started with; `None` if it
    /// has none, or the image has not all of it.
    pub fn vdso(&self, store: &mut Store<'_>, vmas: &[VmaEntry]) -> Result<Option<Vec<u8>>> {
        /// Twice what any kernel has.
        const MOST: u64 = 64 << 10;
        let Some((start, end)) = super::vdso::recorded(vmas).filter(|(start, end)| end - start <= MOST) else {
            return Ok(None);
        };
        if self.vdso.iter().map(|p| p.len).sum::<u64>() != end - start {
            return Ok(None);
        }
        let mut code = vec![0; (end - start) as usize];
        for piece in &self.vdso {
            let at = (piece.start - start) as usize;
            store.open(piece.source)?.read_exact_at(&mut code[at..at + piece.len as usize], piece.offset).map_err(
                |e| {
                    let object = Object::Other("the pages of the vdso in the image".into());
                    Error::kernel(object, "read them", crate::error::errno_of(&e))
                },
            )?;
        }
        Ok(Some(code))
    }

    /// The pages in `start..end`.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Piece> {
        let first = self.pieces.partition_point(|p| p.end() <= start);
        let inside = self.pieces[first..].iter().take_while(move |p| p.start < end);
        inside.filter_map(move |p| p.clip(start, end))
    }

    /// Whether pages have to be written into a mapping before it gets its
    /// final protection. One that could be written is counted against the
    /// commit limit for good (VM_ACCOUNT), and merges with no neighbour that
    /// is not: so none may be writable that has no need of it.
    pub fn fill(&self, vma: &VmaEntry) -> bool {
        let private = vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
        // A ring's contents are put where it will be.
        if vma.status & status::AIORING != 0 {
            return true;
        }
        vma.status & status::REGULAR != 0 && private && (self.extras.was_writable(vma.start) || self.has_pages(vma))
    }

    /// Whether a mapping of the process's own memory that cannot be written to was, and has no pages now.
    pub fn was_emptied(&self, vma: &VmaEntry) -> bool {
        vma.status & status::ANON_PRIVATE != 0 && self.extras.was_writable(vma.start) && !self.has_pages(vma)
    }

    fn has_pages(&self, vma: &VmaEntry) -> bool {
        self.within(vma.start, vma.end).next().is_some()
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
