//! Where the kernel has pages of memory by their structures (struct page): in one mapping of all memory, which begins
//! somewhere else after every start (KASLR). It is found by a page of our own, of which we know the number, the structure
//! and what stands in it. x86-64 (Documentation/arch/x86/x86_64/mm.rst).

use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use super::bpf_iter::{self, Base};
use super::bpf_memory;
use super::check;
use super::unix_memory::Reader;
use crate::pagemap::{self, Entry};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::pipe::{PipeFlags, pipe_with};

const PAGE: u64 = 4096;
/// The mapping begins at a multiple of this.
const STEP: u64 = 1 << 30;
/// Beginnings that are tried, in one run of a program each so many: 4 TiB of memory.
const TRIED_AT_ONCE: u64 = 64;
const MOST_TRIED: u64 = 4096;
/// Words by which our page is known.
const WORDS: usize = 8;

/// The mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirectMap {
    base: u64,
    /// The structure that page 0 would have.
    first: u64,
    /// Bytes of a structure.
    size: u64,
}

/// A page of ours.
struct Own {
    at: *mut u8,
}

impl Own {
    fn new(words: &[u64; WORDS]) -> Result<Own, Errno> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let at =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE as usize, rights, MapFlags::PRIVATE) }?.cast::<u8>();
        // SAFETY: the mapping is ours, new, writable and longer than the words; a page is aligned for them.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), at.cast::<u64>(), WORDS) };
        Ok(Own { at })
    }

    /// Its number.
    fn frame(&self) -> Result<u64, Errno> {
        let pagemap =
            std::fs::File::open("/proc/self/pagemap").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let mut entries = [Entry::default()];
        pagemap::read_entries(&pagemap, self.at as u64, &mut entries)?;
        // Who lacks CAP_SYS_ADMIN is told 0.
        Some(entries[0].frame()).filter(|frame| *frame != 0).ok_or(Errno::PERM)
    }

    /// Its structure: a pipe that holds the page has its address.
    fn structure(&self, reader: &Reader) -> Result<u64, Errno> {
        let (_read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let iov = libc::iovec { iov_base: self.at.cast(), iov_len: PAGE as usize };
        // SAFETY: the page is ours and stays for as long as the pipe, which nobody reads.
        check(unsafe { libc::vmsplice(write.as_raw_fd(), &raw const iov, 1, 0) })?;
        let bufs = reader.field("pipe_inode_info", "bufs", 8)?;
        let at = (reader.own, write.as_fd().as_raw_fd());
        let bufs = bpf_iter::fields(reader.btf, at, Base::Behind, &[bufs])?[2];
        reader.value(bufs, "pipe_buffer", "page", 8)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        let _ = unsafe { munmap(self.at.cast(), PAGE as usize) };
    }
}

impl DirectMap {
    /// That of the running kernel, looked for once.
    pub fn running() -> Result<DirectMap, Errno> {
        static MAP: OnceLock<Result<DirectMap, Errno>> = OnceLock::new();
        *MAP.get_or_init(|| DirectMap::find(&Reader::new()?))
    }

    /// Looks for it. ENOTSUP if it is nowhere.
    pub fn find(reader: &Reader) -> Result<DirectMap, Errno> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
        let words: [u64; WORDS] = std::array::from_fn(|n| (now ^ n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let own = Own::new(&words)?;
        let (frame, structure, size) = (own.frame()?, own.structure(reader)?, reader.size("page")?);
        // The kernel may have moved it in between, and what it has left behind could still be found.
        if own.frame()? != frame {
            return Err(Errno::NOTSUP);
        }
        let first = structure.wrapping_sub(frame * size);
        // The tables of our own mappings stand in it, so it begins below.
        let mm = reader.field("task_struct", "mm", 8)?;
        let mm = bpf_iter::task_fields(reader.btf, reader.own, Base::Task, &[mm])?[2];
        let top = reader.value(mm, "mm_struct", "pgd", 8)? & !(STEP - 1);
        for tried in (0..MOST_TRIED).step_by(TRIED_AT_ONCE as usize) {
            let bases: Vec<u64> = (tried..tried + TRIED_AT_ONCE).map(|n| top.wrapping_sub(n * STEP)).collect();
            let places: Vec<(u64, usize)> = bases.iter().map(|base| (base.wrapping_add(frame * PAGE), WORDS)).collect();
            let told = bpf_memory::words(reader.btf, reader.own, &places)?;
            if let Some(at) = told.iter().position(|there| *there == words) {
                return Ok(DirectMap { base: bases[at], first, size });
            }
        }
        Err(Errno::NOTSUP)
    }

    /// Where the page of a structure stands.
    pub fn page(&self, structure: u64) -> u64 {
        self.base.wrapping_add(structure.wrapping_sub(self.first) / self.size * PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_its_structure() {
        let map = Reader::new().and_then(|reader| DirectMap::find(&reader).map(|map| (reader, map)));
        let (reader, map) = match map {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        let own = Own::new(&[4711; WORDS]).unwrap();
        let at = map.page(own.structure(&reader).unwrap());
        assert_eq!(reader.bytes(at, 16).unwrap(), [4711u64.to_le_bytes(), 4711u64.to_le_bytes()].concat());
    }
}
