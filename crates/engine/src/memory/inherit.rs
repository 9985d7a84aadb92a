//! Copy-on-write sharing between a process and the one that it is born from.
//!
//! A process inherits the memory of its creator as it is then. Where the
//! record of a mapping is the same for both, and pages of it are, the mapping
//! is kept, and so are those pages: they stay the creator's, physically, until
//! one of the two writes. Pages are the same when they lie in the same place
//! of the image (see [`contents`](super::contents)), or, since few images say so,
//! when their contents are equal.

use super::contents::{Contents, Piece, Source, Store};
use super::vma::{is_droppable, status};
use super::{PAGE, ranges};
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are compared at a time.
const PIECE: u64 = 256 << 10;
/// Bytes of a process that are compared even if it is in a hurry: fewer are not stored once for several.
const SOON_COMPARED: u64 = 4 << 20;
/// Pages files that are held open meanwhile.
const OPEN: usize = 16;

/// What a process keeps of the memory that it is born with.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Mappings, by first address, and whether each had to be filled.
    mappings: BTreeMap<u64, Mapping>,
    /// Pages that are right already.
    pages: Vec<(u64, u64)>,
    /// Pages of its creator that the process has not, in the mappings that it keeps.
    pub surplus: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Mapping {
    end: u64,
    /// The protection that it has in the creator before that is finished.
    prot: u32,
}

impl Inheritance {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Whether a mapping is kept.
    pub fn has(&self, vma: &VmaEntry) -> bool {
        self.mappings.contains_key(&vma.start)
    }

    /// The protection that a kept mapping has.
    pub fn protection(&self, vma: &VmaEntry) -> Option<u32> {
        self.mappings.get(&vma.start).map(|mapping| mapping.prot)
    }

    /// The kept mappings.
    pub fn areas(&self) -> impl Iterator<Item = (u64, u64)> {
        self.mappings.iter().map(|(start, mapping)| (*start, mapping.end))
    }

    /// The pages that are right already.
    pub fn pages(&self) -> &[(u64, u64)] {
        &self.pages
    }

    /// What of the pages has to be read from the image.
    pub fn rest(&self, pieces: &[Piece]) -> Vec<Piece> {
        let left = |piece: &Piece| -> Vec<Piece> {
            let gaps = ranges::without(&[(piece.start, piece.end())], &self.pages);
            gaps.into_iter().filter_map(|(start, end)| piece.clip(start, end)).collect()
        };
        if self.pages.is_empty() { pieces.to_vec() } else { pieces.iter().flat_map(left).collect() }
    }
}

/// The address space of a process as its record has it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub vmas: &'a [VmaEntry],
    pub contents: &'a Contents,
}

/// Finds what processes keep, one after the other.
#[derive(Debug, Default)]
pub struct Comparison {
    is_for_later: bool,
    /// Contents are not looked at.
    by_place: bool,
    open: BTreeMap<Source, File>,
    buffers: [Vec<u8>; 2],
}

impl Comparison {
    /// One for processes whose other pages come later, and find no page of the creator's in their place. Of much memory
    /// contents are not looked at: pages are the same in one place of the image only.
    pub fn for_later() -> Self {
        Comparison { is_for_later: true, ..Comparison::default() }
    }

    /// What a process keeps of its creator's memory; `mapped` tells the
    /// protection of the creator's mappings when they have just been filled.
    pub fn between(
        &mut self,
        store: &mut Store<'_>,
        creator: Record<'_>,
        process: Record<'_>,
        mapped: impl Fn(&VmaEntry) -> u32,
    ) -> Result<Inheritance> {
        let mut out = Inheritance::default();
        let bytes: u64 = process.contents.pieces.iter().map(|piece| piece.len).sum();
        self.by_place = self.is_for_later && bytes > SOON_COMPARED;
        let mut theirs: Vec<&VmaEntry> = creator.vmas.iter().filter(|v| may_be_kept(v)).collect();
        theirs.sort_unstable_by_key(|v| v.start);
        for vma in process.vmas.iter().filter(|v| may_be_kept(v)) {
            let next = theirs.partition_point(|v| v.start <= vma.start);
            let Some(origin) = next.checked_sub(1).map(|i| theirs[i]).filter(|v| covers(v, vma)) else {
                continue;
            };
            let (mine, its) = (&process.contents, &creator.contents);
            let mut pages = Vec::new();
            for piece in mine.within(vma.start, vma.end) {
                for other in its.within(piece.start, piece.end()) {
                    let same = piece.clip(other.start, other.end()).unwrap_or(piece);
                    self.equal_pages(store, same, other, &mut pages)?;
                }
            }
            if !pages.is_empty() {
                out.mappings.insert(vma.start, Mapping { end: vma.end, prot: mapped(origin) });
                let stored = |contents: &Contents| -> Vec<(u64, u64)> {
                    contents.within(vma.start, vma.end).map(|p| (p.start, p.end())).collect()
                };
                // What is as the file has it comes from there again.
                let area = [(vma.start, vma.end)];
                let like_file = ranges::common(&area, &its.extras.like_file);
                let theirs = ranges::union([stored(its), like_file].concat());
                let kept = if self.is_for_later { &pages } else { &stored(mine) };
                out.surplus.extend(ranges::without(&theirs, kept));
                out.pages.append(&mut pages);
            }
        }
        Ok(out)
    }

    /// Adds the pages of which two pieces for the same addresses hold the same.
    fn equal_pages(&mut self, store: &mut Store<'_>, a: Piece, b: Piece, out: &mut Vec<(u64, u64)>) -> Result<()> {
        if (a.source, a.offset) == (b.source, b.offset) {
            ranges::push(out, (a.start, a.end()));
            return Ok(());
        }
        if self.by_place {
            return Ok(());
        }
        let mut at = a.start;
        while at < a.end() {
            let len = PIECE.min(a.end() - at);
            let mut buffers = std::mem::take(&mut self.buffers);
            for (piece, buffer) in [a, b].into_iter().zip(&mut buffers) {
                buffer.resize(len as usize, 0);
                let from = piece.offset + (at - piece.start);
                let read = self.file(store, piece.source)?.read_exact_at(buffer, from);
                read.map_err(|e| {
                    let object = Object::Other(format!("the pages at {at:#x} in the image"));
                    Error::kernel(object, "read them", crate::error::errno_of(&e))
                })?;
            }
            let pages = buffers[0].chunks(PAGE as usize).zip(buffers[1].chunks(PAGE as usize));
            for (page, _) in (0..).zip(pages).filter(|(_, (a, b))| a == b) {
                ranges::push(out, (at + page * PAGE, at + (page + 1) * PAGE));
            }
            self.buffers = buffers;
            at += len;
        }
        Ok(())
    }

    fn file(&mut self, store: &mut Store<'_>, source: Source) -> Result<&File> {
        if !self.open.contains_key(&source) {
            if self.open.len() == OPEN {
                self.open.clear();
            }
            self.open.insert(source, store.pages(source)?);
        }
        Ok(&self.open[&source])
    }
}

/// Private memory that fork shares until it is written. Not huge pages: a
/// child's write to one may find none free.
fn may_be_kept(vma: &VmaEntry) -> bool {
    vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0
        && vma.status & status::REGULAR != 0
        && vma.status & (status::VDSO | status::VVAR | status::VSYSCALL | status::GUARD | status::AIORING) == 0
        && vma.flags & libc::MAP_HUGETLB as u32 == 0
        && !is_droppable(vma)
}

/// Whether a mapping was a part of another, as far as the records tell.
fn covers(whole: &VmaEntry, part: &VmaEntry) -> bool {
    const LOCKED: u32 = libc::MAP_LOCKED as u32;
    let file = whole.status & status::FILE_PRIVATE != 0;
    let same_file = (whole.shmid, whole.fdflags) == (part.shmid, part.fdflags)
        && part.pgoff.wrapping_sub(whole.pgoff) == part.start - whole.start;
    whole.start <= part.start
        && part.end <= whole.end
        && (whole.status ^ part.status) & !status::HEAP == 0
        && (whole.flags ^ part.flags) & !LOCKED == 0
        && (!file || same_file)
}
