//! What is there where a mapping has no page of its own: zeros, or what its file has. A page that is the same need not be
//! stored.

use super::PAGE;
use super::ranges::{self, Range};
use cryonaut_kernel::proc::{Task, maps::Vma};
use cryonaut_kernel::sys::huge;
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// What is there without a page.
#[derive(Debug, Clone)]
pub enum Absent {
    /// Not known, or not to be relied upon: each page is stored.
    Unknown,
    /// Zeros.
    Zeros,
    /// A file's contents: its first byte that is mapped lies at this address, and this far from its beginning.
    File(Arc<File>, u64, u64),
}

impl Absent {
    /// Of these whole pages, which begin at address `start`, those that are as if they were not there.
    pub fn same(&self, start: u64, bytes: &[u8]) -> Vec<Range> {
        let mut same = Vec::new();
        let mut add =
            |index: usize| ranges::push(&mut same, (start + index as u64 * PAGE, start + (index as u64 + 1) * PAGE));
        let pages = bytes.chunks_exact(PAGE as usize).enumerate();
        match self {
            Absent::Unknown => {}
            Absent::Zeros => pages.filter(|(_, page)| *page == ZEROS).for_each(|(index, _)| add(index)),
            Absent::File(file, address, offset) => {
                // What is behind the end of the file is no page of it.
                let mut there = vec![0; bytes.len()];
                let len = read(file, &mut there, start - address + offset);
                let whole = there[..len].chunks_exact(PAGE as usize);
                pages.zip(whole).filter(|((_, page), there)| page == there).for_each(|((index, _), _)| add(index));
            }
        }
        same
    }
}

/// Reads as much as can be read; how much that is.
fn read(file: &File, bytes: &mut [u8], offset: u64) -> usize {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

/// Device, inode and path of a file: on btrfs, files of two subvolumes may have the first two in common.
type Identity = ((u32, u32), u64, OsString);

/// Files that are mapped in a tree, opened once each, as far as they are to be opened.
#[derive(Debug, Default)]
pub struct MappedFiles(Mutex<BTreeMap<Identity, Option<Arc<File>>>>);

impl MappedFiles {
    /// What there is without pages in a private mapping of a process. Of a device that is not known: to look might change
    /// it.
    pub fn absent(&self, task: &Task, vma: &Vma) -> Absent {
        if !vma.has_file() {
            return Absent::Zeros;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let name = format!("map_files/{:x}-{:x}", vma.start, vma.end);
            // By its path alone first: the kernel opens what it is.
            let path = task.open_file(&name, OFlags::PATH).ok()?;
            let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&path).ok()?.st_mode);
            // Huge pages come back whole or not at all.
            let is_huge = huge::page_of(&path).ok()?.is_some();
            let file = || task.open_file(&name, OFlags::RDONLY).ok();
            (kind.is_file() && !is_huge).then(file)?.map(|file| Arc::new(File::from(file)))
        };
        let file = known.entry((vma.dev, vma.inode, vma.path.clone())).or_insert_with(open).clone();
        file.map_or(Absent::Unknown, |file| Absent::File(file, vma.start, vma.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_the_same_is_found() {
        let page = PAGE as usize;
        let mut bytes = vec![0; 5 * page];
        assert_eq!(Absent::Zeros.same(PAGE, &bytes), [(PAGE, 6 * PAGE)]);
        bytes[page - 1] = 1;
        bytes[3 * page] = 1;
        assert_eq!(Absent::Zeros.same(PAGE, &bytes), [(2 * PAGE, 4 * PAGE), (5 * PAGE, 6 * PAGE)]);
        assert_eq!(Absent::Unknown.same(PAGE, &bytes), []);
        // A page before what is mapped, and an end within a page.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; page]).unwrap();
        file.write_all(&bytes[..4 * page + 100]).unwrap();
        let mapped = Absent::File(Arc::new(file), 16 * PAGE, PAGE);
        assert_eq!(mapped.same(16 * PAGE, &bytes), [(16 * PAGE, 20 * PAGE)]);
        bytes[2 * page] = 9;
        assert_eq!(mapped.same(16 * PAGE, &bytes), [(16 * PAGE, 18 * PAGE), (19 * PAGE, 20 * PAGE)]);
        assert_eq!(mapped.same(17 * PAGE, &bytes[page..2 * page]), [(17 * PAGE, 18 * PAGE)]);
    }

    #[test]
    fn the_file_of_a_mapping_is_found() {
        let task = Task::current().unwrap();
        let maps = task.maps().unwrap();
        let files = MappedFiles::default();
        let of_program = maps.iter().find(|vma| vma.has_file() && vma.offset > 0).unwrap();
        assert!(matches!(files.absent(&task, of_program), Absent::File(_, start, _) if start == of_program.start));
        let heap = maps.iter().find(|vma| vma.special() == Some(b"heap")).unwrap();
        assert!(matches!(files.absent(&task, heap), Absent::Zeros));
    }
}
