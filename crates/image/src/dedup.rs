//! Taking out of an image's parents what the image has itself.
//!
//! The pages files keep their size and the pagemaps stay as they are: the pages become holes. A parent is then good for
//! its children alone.

use std::collections::BTreeMap;
use std::fs::File;

use crate::ranges::{self, Range};
use rustix::fs::{FallocateFlags, fallocate};

use crate::chain::Chain;
use crate::error::{Error, Result};
use crate::image_dir::ImageDir;
use crate::kind::ImageKind;
use crate::pages::{PAGE_SIZE, PageFlags, Pagemap};

/// What was taken out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deduplicated {
    /// Pages of parents that are holes now.
    pub pages: u64,
}

/// Makes holes in all parents for the pages that an image has, or has from a nearer one.
///
/// # Errors
/// [`Error::Io`], also if the file system knows no holes; those of reading the images.
pub fn dedup(image: &ImageDir) -> Result<Deduplicated> {
    let parents = parents_of(image)?;
    // By the place of the parent and the number of its pages file.
    let mut files: BTreeMap<(usize, u32), PagesFile> = BTreeMap::new();
    for (kind, id) in image.files()? {
        let (ImageKind::Pagemap | ImageKind::ShmemPagemap, Some(id)) = (kind, id) else { continue };
        let map = Pagemap::read(image, kind, id)?;
        // What is not said to be in the parent is here, or nowhere.
        let mut newer = Vec::new();
        add(&mut newer, &map);
        for (place, parent) in parents.iter().enumerate() {
            // It need not know of a younger process.
            if parent.entries_optional(kind, id)?.is_none() {
                break;
            }
            let map = Pagemap::read(parent, kind, id)?;
            files.entry((place, map.pages_id())).or_default().note(&map, &newer);
            add(&mut newer, &map);
        }
    }
    let mut done = Deduplicated::default();
    for ((place, pages_id), file) in files {
        done.pages += file.take_out(&parents[place], pages_id)?;
    }
    Ok(done)
}

/// Parents that are looked at; more is a circle.
const MAX_PARENTS: usize = 1000;

fn parents_of(image: &ImageDir) -> Result<Vec<ImageDir>> {
    let mut parents = Vec::new();
    let mut next = image.parent()?;
    while let Some(parent) = next {
        next = parent.parent()?;
        parents.push(parent);
        if parents.len() > MAX_PARENTS {
            return Err(Error::parent(image.path(), "the parents go round in a circle"));
        }
    }
    Ok(parents)
}

/// Adds the runs of a map that are not the parent's to a set.
fn add(set: &mut Vec<Range>, map: &Pagemap) {
    let own = map.runs().iter().filter(|run| !run.flags.contains(PageFlags::PARENT));
    set.extend(own.map(|run| (run.vaddr, run.end())));
    *set = ranges::union(std::mem::take(set));
}

/// What becomes of the places in a parent's pages file. Pages that processes share are in one file, which is named by the
/// pagemaps of all of them: what one has anew, another may have nowhere else.
#[derive(Debug, Default)]
struct PagesFile {
    newer: Vec<Range>,
    needed: Vec<Range>,
}

impl PagesFile {
    /// Notes what a process has in it, of which the addresses in `newer` are to be had from a nearer image.
    fn note(&mut self, map: &Pagemap, newer: &[Range]) {
        for run in map.runs() {
            let Some(offset) = run.offset else { continue };
            let place = |(start, end): &Range| (offset + (start - run.vaddr), offset + (end - run.vaddr));
            let all = [(run.vaddr, run.end())];
            self.newer.extend(ranges::common(&all, newer).iter().map(place));
            self.needed.extend(ranges::without(&all, newer).iter().map(place));
        }
    }

    /// Makes holes of what nobody needs; how many pages that is.
    fn take_out(self, parent: &ImageDir, pages_id: u32) -> Result<u64> {
        let holes = ranges::without(&ranges::union(self.newer), &ranges::union(self.needed));
        if holes.is_empty() {
            return Ok(0);
        }
        let file = parent.open_pages_to_change(pages_id)?;
        for (start, end) in &holes {
            punch(&file, *start, end - start)
                .map_err(|errno| Error::io("make holes in", parent.path().to_owned(), errno.into()))?;
        }
        Ok(holes.iter().map(|(start, end)| (end - start) / PAGE_SIZE).sum())
    }
}

/// Makes holes for all pages that a restore has taken out of an image and its parents: the image is used up.
///
/// # Errors
/// As for [`dedup`].
pub fn take_out_all(image: &ImageDir) -> Result<Deduplicated> {
    let mut done = Deduplicated::default();
    let mut chain = Chain::new(image);
    for (kind, id) in image.files()? {
        let (ImageKind::Pagemap | ImageKind::ShmemPagemap, Some(id)) = (kind, id) else { continue };
        for group in chain.pieces(kind, id)?.chunk_by(|a, b| a.source == b.source) {
            let Some(owner) = chain.level(group[0].source.level)? else { continue };
            let file = owner.open_pages_to_change(group[0].source.pages_id)?;
            for piece in group {
                punch(&file, piece.offset, piece.len)
                    .map_err(|errno| Error::io("make holes in", owner.path().to_owned(), errno.into()))?;
                done.pages += piece.len / PAGE_SIZE;
            }
        }
    }
    Ok(done)
}

/// Makes a hole of pages in a file, whose size stays.
fn punch(file: &File, offset: u64, len: u64) -> rustix::io::Result<()> {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::InventoryEntry;
    use crate::{CommitOptions, DumpDir, PagemapWriter};
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::Path;

    const PID: u64 = 7;

    /// An image of runs (address in pages, number, byte that they are full of; 0 for the parent's).
    fn write(dir: &Path, parent: Option<&str>, runs: &[(u64, u64, u8)]) {
        let dump = DumpDir::create(dir).unwrap();
        parent.iter().for_each(|parent| dump.set_parent(parent).unwrap());
        let mut map = PagemapWriter::create(&dump, ImageKind::Pagemap, PID, 1).unwrap();
        let mut pages = dump.raw_file(ImageKind::Pages, 1).unwrap();
        for (at, count, byte) in runs {
            let flags = if *byte == 0 { PageFlags::PARENT } else { PageFlags::PRESENT };
            map.push(at * PAGE_SIZE, *count, flags).unwrap();
            pages.write_all(&vec![*byte; if *byte == 0 { 0 } else { (count * PAGE_SIZE) as usize }]).unwrap();
        }
        map.finish().unwrap();
        dump.write_one(ImageKind::Inventory, None, &InventoryEntry { img_version: 2, ..Default::default() }).unwrap();
        drop(dump.commit(CommitOptions::default()).unwrap());
    }

    fn contents(dir: &Path) -> Vec<(u64, u8)> {
        let mut chain = Chain::open(dir).unwrap();
        let mut out = Vec::new();
        for piece in chain.pieces(ImageKind::Pagemap, PID).unwrap() {
            let file = chain.pages(piece.source).unwrap();
            for page in 0..piece.len / PAGE_SIZE {
                let mut byte = [0];
                file.read_exact_at(&mut byte, piece.offset + page * PAGE_SIZE).unwrap();
                out.push((piece.start / PAGE_SIZE + page, byte[0]));
            }
        }
        out
    }

    /// Three images of 64 pages, each with others of them new.
    fn chain(dir: &Path) {
        write(&dir.join("1"), None, &[(0x100, 64, 1)]);
        write(&dir.join("2"), Some("../1"), &[(0x100, 16, 0), (0x110, 16, 2), (0x120, 32, 0)]);
        write(&dir.join("3"), Some("../2"), &[(0x100, 24, 0), (0x118, 24, 3), (0x130, 16, 0), (0x200, 8, 3)]);
    }

    #[test]
    fn what_a_child_has_is_taken_out_of_all_parents() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let before = contents(&dir.path().join("3"));
        assert_eq!(before.len(), 72);
        let blocks = |name: &str| fs::metadata(dir.path().join(name).join("pages-1.img")).unwrap().blocks();
        let were = (blocks("1"), blocks("2"), blocks("3"));
        let done = dedup(&ImageDir::open(dir.path().join("3")).unwrap()).unwrap();
        // 8 of the second; 32 of the first, of which 8 are newer twice.
        assert_eq!(done.pages, 8 + 32);
        assert!(blocks("1") < were.0 && blocks("2") < were.1 && blocks("3") == were.2);
        assert_eq!(contents(&dir.path().join("3")), before);
        ImageDir::open(dir.path().join("3")).unwrap().verify(true).unwrap();
    }

    #[test]
    fn a_chain_becomes_one_image() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let before = contents(&dir.path().join("3"));
        let image = ImageDir::open(dir.path().join("3")).unwrap();
        for out in ["4", "3"] {
            let out = dir.path().join(out);
            let done = crate::squash::squash(&image, &out).unwrap();
            assert_eq!((done.pages, done.from_parents), (72, 40));
            assert_eq!(contents(&out), before);
            assert_eq!(fs::metadata(out.join("pages-1.img")).unwrap().len(), 72 * PAGE_SIZE);
            assert!(!out.join("parent").exists());
            ImageDir::open(&out).unwrap().verify(true).unwrap();
        }
        fs::remove_dir_all(dir.path().join("1")).unwrap();
        assert_eq!(contents(&dir.path().join("3")), before);
    }

    #[test]
    fn what_another_process_has_in_the_same_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dump = DumpDir::create(dir.path()).unwrap();
        let layer = dump.layers(1).unwrap().remove(0);
        let map = |dump: &DumpDir, pid: u64, pages_id: u32, runs: &[(u64, u64, PageFlags)]| {
            let mut map = PagemapWriter::create(dump, ImageKind::Pagemap, pid, pages_id).unwrap();
            for (at, count, flags) in runs {
                map.push(at * PAGE_SIZE, *count, *flags).unwrap();
            }
            map.finish().unwrap();
        };
        let pages = |dump: &DumpDir, pages_id: u64, count: u64| {
            let mut pages = dump.raw_file(ImageKind::Pages, pages_id).unwrap();
            pages.write_all(&vec![1; (count * PAGE_SIZE) as usize]).unwrap();
        };
        // Both have three pages in common; the second and the third have been written to by the other, the third by both.
        for pid in [PID, 8] {
            map(&layer, pid, 1, &[(0x100, 3, PageFlags::PRESENT)]);
        }
        pages(&layer, 1, 3);
        map(&dump, PID, 2, &[(0x100, 2, PageFlags::PARENT), (0x102, 1, PageFlags::PRESENT)]);
        pages(&dump, 2, 1);
        map(&dump, 8, 3, &[(0x100, 1, PageFlags::PARENT), (0x101, 2, PageFlags::PRESENT)]);
        pages(&dump, 3, 2);
        drop(layer);
        dump.write_one(ImageKind::Inventory, None, &InventoryEntry { img_version: 2, ..Default::default() }).unwrap();
        drop(dump.commit(CommitOptions::default()).unwrap());
        assert_eq!(dedup(&ImageDir::open(dir.path()).unwrap()).unwrap().pages, 1);
        assert_eq!(contents(dir.path()), [(0x100, 1), (0x101, 1), (0x102, 1)]);
    }

    #[test]
    fn what_a_restore_has_taken_leaves_holes() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let done = take_out_all(&ImageDir::open(dir.path().join("3")).unwrap()).unwrap();
        assert_eq!(done.pages, 72);
        assert_eq!(fs::metadata(dir.path().join("3/pages-1.img")).unwrap().blocks(), 0);
        assert!(contents(&dir.path().join("3")).iter().all(|(_, byte)| *byte == 0));
    }

    #[test]
    fn a_parent_that_lacks_pages_is_named() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let of = |name: &str| ImageDir::open(dir.path().join(name)).unwrap().verify(false).map(drop);
        of("3").unwrap();
        fs::remove_file(dir.path().join("1/cryonaut-manifest.json")).unwrap();
        fs::remove_file(dir.path().join("1/pagemap-7.img")).unwrap();
        let missing = of("3").unwrap_err().to_string();
        assert!(missing.contains("parent/parent/pagemap-7.img is missing"), "{missing}");
        fs::remove_dir_all(dir.path().join("1")).unwrap();
        let gone = of("3").unwrap_err().to_string();
        assert!(gone.contains("parent/parent: leads to a directory that is not there"), "{gone}");
        write(&dir.path().join("1"), None, &[(0x100, 8, 1)]);
        let other = of("3").unwrap_err().to_string();
        assert!(other.contains("is another image"), "{other}");
        fs::remove_file(dir.path().join("1/cryonaut-manifest.json")).unwrap();
        let lacks = of("3").unwrap_err().to_string();
        assert!(lacks.contains("lacks pages at 0x100000"), "{lacks}");
        fs::remove_file(dir.path().join("2/parent")).unwrap();
        let none = of("3").unwrap_err().to_string();
        assert!(none.contains("there is no `parent`"), "{none}");
    }
}
