//! The private pages that an image has for a process, and where each lies: in
//! a pages file of the image itself, or of the parent that it names, or of the
//! parent's parent.

use super::ranges::{self, Range};
use super::{extras::Extras, vma::status};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::VmaEntry;
pub use cryonaut_image::{Chain as Store, FoundPages, Piece, Source};
use std::os::unix::fs::FileExt;

/// The private pages of a process.
#[derive(Debug)]
pub struct Contents {
    /// Ascending by address.
    pub pieces: Vec<Piece>,
    /// Pages that a page server has in the place of the image, ascending.
    pub elsewhere: Vec<Range>,
    /// The pages of the vdso that the program was started with.
    vdso: Vec<Piece>,
    /// What is kept of the process beside its pages.
    pub extras: Extras,
}

impl Contents {
    /// What an image has for a process. Pages where it has no mapping would be written over what a hand has there.
    pub fn read(store: &mut Store<'_>, pid: i32, vmas: &[VmaEntry], extras: Extras) -> Result<Self> {
        let FoundPages { pieces, elsewhere } = store.found(ImageKind::Pagemap, pid as u64)?;
        let stored = pieces.iter().map(|piece| (piece.start, piece.end())).chain(elsewhere.iter().copied()).collect();
        let mapped = ranges::union(vmas.iter().map(|vma| (vma.start, vma.end)).collect());
        if let Some((at, _)) = ranges::without(&ranges::union(stored), &mapped).first() {
            let problem = format!("it has pages at {at:#x}, where the process has no mapping");
            return Err(Error::bad_image(format!("pagemap-{pid}.img"), problem));
        }
        // The vdso's pages are those of the kernel on which the program was started.
        let Some(vdso) = vmas.iter().find(|v| v.status & status::VDSO != 0) else {
            return Ok(Contents { pieces, elsewhere, vdso: Vec::new(), extras });
        };
        let inside = pieces.iter().filter_map(|p| p.clip(vdso.start, vdso.end)).collect();
        let outside = |p: Piece| [p.clip(0, vdso.start), p.clip(vdso.end, u64::MAX)];
        let pieces = pieces.into_iter().flat_map(outside).flatten().collect();
        Ok(Contents { pieces, elsewhere, vdso: inside, extras })
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
            store.pages(piece.source)?.read_exact_at(&mut code[at..at + piece.len as usize], piece.offset).map_err(
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
        let is_inside = |range: &Range| range.0 < vma.end && vma.start < range.1;
        let mut others = self.extras.like_file.iter().chain(&self.elsewhere);
        self.within(vma.start, vma.end).next().is_some() || others.any(is_inside)
    }
}
