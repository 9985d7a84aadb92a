//! `/proc/PID/pagemap`: which pages of an address range exist, and of what sort they are.
//!
//! Two sources give the same answer, a [`PageRuns`] iterator over runs of equal pages: the PAGEMAP_SCAN ioctl
//! (Linux 6.7), which skips what is not populated and can write-protect what it reports; and the file itself, eight
//! bytes for every page of the range, populated or not, for older kernels.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use bitflags::bitflags;
use linux_raw_sys::general as uapi;
use rustix::io::Errno;

use crate::features::{Answer, Id, probe};

/// Bytes of a page, and of what one pagemap entry stands for, on x86_64.
pub const PAGE_SIZE: u64 = 4096;

bitflags! {
    /// `PAGE_IS_*`: what a page may be.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Categories: u64 {
        /// Registered for asynchronous write-protection.
        const WPALLOWED = uapi::PAGE_IS_WPALLOWED as u64;
        /// Written since it was last write-protected; a page that was never protected counts as written.
        const WRITTEN = uapi::PAGE_IS_WRITTEN as u64;
        /// Of a file or of shared anonymous memory.
        const FILE = uapi::PAGE_IS_FILE as u64;
        const PRESENT = uapi::PAGE_IS_PRESENT as u64;
        const SWAPPED = uapi::PAGE_IS_SWAPPED as u64;
        /// The shared page of zeros (also the huge one). Told by the ioctl alone.
        const PFNZERO = uapi::PAGE_IS_PFNZERO as u64;
        /// Mapped by a huge entry. Told by the ioctl alone.
        const HUGE = uapi::PAGE_IS_HUGE as u64;
        /// Written since `clear_refs`; never set where the kernel lacks CONFIG_MEM_SOFT_DIRTY.
        const SOFT_DIRTY = uapi::PAGE_IS_SOFT_DIRTY as u64;
        /// Of a guard region (MADV_GUARD_INSTALL). The file tells it since Linux 6.14, the ioctl since 6.16.
        const GUARD = uapi::PAGE_IS_GUARD as u64;
    }
}

bitflags! {
    /// `PM_SCAN_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ScanFlags: u64 {
        /// Write-protect the pages that match. The range must be registered for it with a userfaultfd in
        /// asynchronous mode.
        const WP_MATCHING = uapi::PM_SCAN_WP_MATCHING as u64;
        /// Stop with EPERM at a mapping that is not.
        const CHECK_WPASYNC = uapi::PM_SCAN_CHECK_WPASYNC as u64;
    }
}

/// Which pages are wanted: those of `start..end` whose categories, after those in `inverted` have been turned
/// around, include all of `all` and, unless it is empty, some of `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Query {
    /// Page-aligned addresses.
    pub start: u64,
    pub end: u64,
    pub inverted: Categories,
    pub all: Categories,
    pub any: Categories,
    /// The categories to tell, and by which runs are told apart.
    pub tell: Categories,
    pub flags: ScanFlags,
    /// Most pages that one call tells of; 0 for no limit.
    pub most: u64,
}

impl Query {
    /// Pages with contents: in memory or in swap.
    pub fn populated(start: u64, end: u64) -> Self {
        let any = Categories::PRESENT | Categories::SWAPPED;
        Self { start, end, any, tell: any, ..Self::default() }
    }

    fn matches(&self, page: Categories) -> bool {
        let turned = page ^ self.inverted;
        turned.contains(self.all) && (self.any.is_empty() || turned.intersects(self.any))
    }
}

/// Neighbouring pages of the same categories. Its layout is that of `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageRun {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    pub categories: Categories,
}

impl PageRun {
    /// Its first address, and the first behind it.
    pub fn range(&self) -> (u64, u64) {
        (self.start, self.end)
    }
}

const PAGEMAP_SCAN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<uapi::pm_scan_arg>(b'f', 16);
const _: () = assert!(size_of::<uapi::pm_scan_arg>() == 96 && PAGEMAP_SCAN == 0xc060_6610);
const _: () = assert!(size_of::<PageRun>() == size_of::<uapi::page_region>());
const _: () = assert!(size_of::<PageRun>() == 24);

/// One PAGEMAP_SCAN: fills `runs` from its beginning and returns how many it holds, and the address at which the walk
/// stopped: `query.end`, or less when `runs` was full or `query.most` pages found. ENOTTY before Linux 6.7.
///
/// With an empty `runs` nothing is told, but `WP_MATCHING` is done.
pub fn scan(pagemap: impl AsFd, query: &Query, runs: &mut [PageRun]) -> Result<(usize, u64), Errno> {
    let mut arg = uapi::pm_scan_arg {
        size: size_of::<uapi::pm_scan_arg>() as u64,
        flags: query.flags.bits(),
        start: query.start,
        end: query.end,
        walk_end: 0,
        vec: if runs.is_empty() { 0 } else { runs.as_mut_ptr() as u64 },
        vec_len: runs.len() as u64,
        max_pages: query.most,
        category_inverted: query.inverted.bits(),
        category_mask: query.all.bits(),
        category_anyof_mask: query.any.bits(),
        return_mask: query.tell.bits(),
    };
    // SAFETY: PAGEMAP_SCAN is given one pm_scan_arg that outlives the call, and in it an array of `vec_len`
    // page_region, whose layout PageRun has: the kernel writes at most that many. Any bits are valid Categories.
    let count = unsafe { rustix::ioctl::ioctl(pagemap, ScanCall { arg: &mut arg }) }?;
    // The kernel notes where its own buffer was full, for as many runs as a page table has entries, and forgets to note that
    // it has come to the end after that (do_pagemap_scan in fs/proc/task_mmu.c): it would tell the last runs twice.
    let told = runs[..count].last().map_or(0, |run| run.end);
    Ok((count, arg.walk_end.max(told)))
}

/// The ioctl returns the number of runs, which rustix's ready-made callers drop.
struct ScanCall<'a> {
    arg: &'a mut uapi::pm_scan_arg,
}

// SAFETY: the opcode is that of PAGEMAP_SCAN, which reads and writes the pm_scan_arg that `as_ptr` gives.
unsafe impl rustix::ioctl::Ioctl for ScanCall<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut *self.arg).cast()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(out as usize)
    }
}

/// One entry of the file (admin-guide/mm/pagemap.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// Page frame number; 0 without CAP_SYS_ADMIN, and for pages that are not present.
    pub fn frame(self) -> u64 {
        if self.has(63) { self.0 & ((1 << 55) - 1) } else { 0 }
    }

    /// Mapped by this process alone.
    pub fn exclusive(self) -> bool {
        self.has(56)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// What the entry tells of the page. `WPALLOWED`, `PFNZERO` and `HUGE` cannot be seen here; `WRITTEN` means
    /// not write-protected by a userfaultfd.
    pub fn categories(self) -> Categories {
        let mut page = Categories::empty();
        page.set(Categories::SOFT_DIRTY, self.has(55));
        page.set(Categories::WRITTEN, !self.has(57));
        page.set(Categories::GUARD, self.has(58));
        page.set(Categories::FILE, self.has(61));
        page.set(Categories::SWAPPED, self.has(62));
        page.set(Categories::PRESENT, self.has(63));
        page
    }
}

/// Reads the entries of the pages from `address` on; returns how many there were before the end of the address space.
pub fn read_entries(pagemap: impl AsFd, address: u64, into: &mut [Entry]) -> Result<usize, Errno> {
    let mut offset = address / PAGE_SIZE * 8;
    let mut bytes = vec![0u8; into.len() * 8];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(&pagemap, &mut bytes[filled..], offset) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    for (entry, word) in into.iter_mut().zip(bytes[..filled].as_chunks::<8>().0) {
        *entry = Entry(u64::from_ne_bytes(*word));
    }
    Ok(filled / 8)
}

/// How many runs one ioctl may bring, and how many entries one read of the file.
const BATCH: usize = 1024;

#[derive(Debug)]
enum Source {
    Scan,
    File { entries: Vec<Entry> },
}

/// The runs of pages that a query asks for, ascending. Neighbours of equal categories come as one run. Memory is
/// bounded: 24 KiB, whatever the range.
#[derive(Debug)]
pub struct PageRuns<'fd> {
    pagemap: BorrowedFd<'fd>,
    /// What is left of the range.
    query: Query,
    source: Source,
    batch: Vec<PageRun>,
    /// The part of `batch` that has not been handed out.
    ready: std::ops::Range<usize>,
    /// Not handed out yet, because the next may continue it.
    held: Option<PageRun>,
    failed: bool,
}

impl<'fd> PageRuns<'fd> {
    /// As by [`scan_or_read`]. `pagemap` is an open `/proc/PID/pagemap`.
    pub fn scan(pagemap: BorrowedFd<'fd>, query: Query) -> Self {
        Self::new(pagemap, query, Source::Scan)
    }

    /// Through the file. `query.flags` must be empty.
    pub fn from_file(pagemap: BorrowedFd<'fd>, query: Query) -> Self {
        debug_assert!(query.flags.is_empty(), "the file only tells");
        Self::new(pagemap, query, Source::File { entries: vec![Entry::default(); BATCH] })
    }

    fn new(pagemap: BorrowedFd<'fd>, query: Query, source: Source) -> Self {
        let batch = vec![PageRun::default(); BATCH];
        Self { pagemap, query, source, batch, ready: 0..0, held: None, failed: false }
    }

    /// The next run as the source tells it; neighbours may be equal where a batch ends.
    fn raw(&mut self) -> Result<Option<PageRun>, Errno> {
        while self.ready.is_empty() {
            if self.query.start >= self.query.end {
                return Ok(None);
            }
            let (count, reached) = match &mut self.source {
                Source::Scan => scan_or_read(self.pagemap, &self.query, &mut self.batch)?,
                Source::File { entries } => read_runs(self.pagemap, &self.query, entries, &mut self.batch)?,
            };
            // A walk that does not get on would go on for ever.
            if reached <= self.query.start {
                return Err(Errno::IO);
            }
            self.query.start = reached;
            self.ready = 0..count;
        }
        Ok(self.ready.next().map(|at| self.batch[at]))
    }

    fn advance(&mut self) -> Result<Option<PageRun>, Errno> {
        loop {
            let next = self.raw()?;
            match (&mut self.held, next) {
                (Some(held), Some(run)) if held.end == run.start && held.categories == run.categories => {
                    held.end = run.end;
                }
                (None, None) => return Ok(None),
                (held, next) => {
                    if let Some(run) = std::mem::replace(held, next) {
                        return Ok(Some(run));
                    }
                }
            }
        }
    }
}

impl Iterator for PageRuns<'_> {
    type Item = Result<PageRun, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Whether this kernel has PAGEMAP_SCAN, which passes over what is not mapped: the file has eight bytes for each page of
/// that as well, which of the room between two mappings can be more than anybody could ever read.
pub fn can_scan() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| probe(Id::PagemapScan) == Answer::Present)
}

/// The same as [`scan`], before Linux 6.7 from the file, which takes longer: then `query.flags` must be empty, or it is
/// ENOTTY.
pub fn scan_or_read(pagemap: BorrowedFd<'_>, query: &Query, runs: &mut [PageRun]) -> Result<(usize, u64), Errno> {
    match scan(pagemap, query, runs) {
        Err(Errno::NOTTY) if query.flags.is_empty() => {
            read_runs(pagemap, query, &mut vec![Entry::default(); runs.len()], runs)
        }
        told => told,
    }
}

/// [`scan`]'s answer from the file.
fn read_runs(
    pagemap: BorrowedFd<'_>,
    query: &Query,
    entries: &mut [Entry],
    runs: &mut [PageRun],
) -> Result<(usize, u64), Errno> {
    let pages = ((query.end - query.start) / PAGE_SIZE).min(entries.len() as u64);
    let told = read_entries(pagemap, query.start, &mut entries[..pages as usize])?;
    if told == 0 {
        // Beyond the end of the address space, or of the process.
        return Ok((0, query.end));
    }
    let mut count = 0usize;
    for (index, entry) in entries[..told].iter().enumerate() {
        let page = entry.categories();
        if !query.matches(page) {
            continue;
        }
        let start = query.start + index as u64 * PAGE_SIZE;
        let categories = page & query.tell;
        match runs[..count].last_mut() {
            Some(last) if last.end == start && last.categories == categories => last.end += PAGE_SIZE,
            // There are at least as many runs as entries: a page makes at most one.
            _ => {
                runs[count] = PageRun { start, end: start + PAGE_SIZE, categories };
                count += 1;
            }
        }
    }
    Ok((count, query.start + told as u64 * PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use rustix::fs::OFlags;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    use std::os::fd::OwnedFd;

    /// Maps `pages` small pages and touches the listed ones.
    fn touched(pages: usize, touch: impl Iterator<Item = usize>) -> (OwnedFd, u64, u64) {
        let size = pages * PAGE_SIZE as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at the kernel's choice of address overlaps nothing of ours; the bytes
        // written lie in it.
        let start = unsafe {
            let base = mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, flags).unwrap();
            rustix::mm::madvise(base, size, rustix::mm::Advice::LinuxNoHugepage).unwrap();
            for page in touch {
                base.cast::<u8>().add(page * PAGE_SIZE as usize).write_volatile(1);
            }
            base as u64
        };
        let pagemap = Task::current().unwrap().open_file("pagemap", OFlags::RDONLY).unwrap();
        (pagemap, start, start + size as u64)
    }

    fn unmap(start: u64, end: u64) {
        // SAFETY: the range was mapped by `touched`, and no reference into it exists.
        unsafe { munmap(start as *mut _, (end - start) as usize) }.unwrap();
    }

    fn pages(runs: PageRuns<'_>, base: u64) -> Vec<(u64, u64)> {
        let page = |address: u64| (address - base) / PAGE_SIZE;
        runs.map(Result::unwrap).map(|run| (page(run.start), page(run.end))).collect()
    }

    /// More than the kernel's own buffer holds, fewer than ours.
    #[test]
    fn no_run_is_told_twice() {
        let (pagemap, start, end) = touched(1600, (0..1600).filter(|page| page % 2 == 0));
        let (mut query, mut room, mut all) = (Query::populated(start, end), [PageRun::default(); 1000], Vec::new());
        while query.start < query.end {
            let (count, reached) = scan_or_read(pagemap.as_fd(), &query, &mut room).unwrap();
            all.extend(room[..count].iter().map(PageRun::range));
            assert!(reached > query.start);
            query.start = reached;
        }
        let expected = (0..800).map(|run| start + run * 2 * PAGE_SIZE).map(|page| (page, page + PAGE_SIZE));
        assert_eq!(all, expected.collect::<Vec<_>>());
        unmap(start, end);
    }

    #[test]
    fn both_sources_tell_the_same_runs() {
        // More runs than a batch holds, and one that crosses the end of a batch of entries.
        let touch = (0..3000).filter(|page| page % 2 == 0).chain(4000..4200).chain([5999]);
        let (pagemap, start, end) = touched(6000, touch);
        let mut expected: Vec<_> = (0..3000).filter(|page| page % 2 == 0).map(|page| (page, page + 1)).collect();
        expected.extend([(4000, 4200), (5999, 6000)]);
        let query = Query::populated(start, end);
        assert_eq!(pages(PageRuns::from_file(pagemap.as_fd(), query), start), expected);
        match scan(&pagemap, &query, &mut []) {
            Err(errno) => assert_eq!(errno, Errno::NOTTY),
            Ok((0, reached)) => {
                assert_eq!(reached, end);
                assert_eq!(pages(PageRuns::scan(pagemap.as_fd(), query), start), expected);
            }
            Ok(other) => panic!("{other:?}"),
        }
        unmap(start, end);
    }

    #[test]
    fn queries_match_by_all_any_and_inverted() {
        let query = Query {
            inverted: Categories::PFNZERO | Categories::FILE,
            all: Categories::PFNZERO,
            any: Categories::PRESENT | Categories::SWAPPED,
            ..Query::default()
        };
        assert!(query.matches(Categories::PRESENT));
        assert!(query.matches(Categories::SWAPPED | Categories::FILE));
        assert!(!query.matches(Categories::PRESENT | Categories::PFNZERO));
        assert!(!query.matches(Categories::empty()));
    }

    #[test]
    fn entries_are_decoded() {
        let entry = Entry(1 << 63 | 1 << 61 | 1 << 57 | 1 << 56 | 0x1234);
        assert_eq!(entry.categories(), Categories::PRESENT | Categories::FILE);
        assert_eq!((entry.frame(), entry.exclusive()), (0x1234, true));
        assert_eq!(Entry(1 << 62 | 0x99).frame(), 0);
        assert_eq!(Entry(1 << 58).categories(), Categories::GUARD | Categories::WRITTEN);
    }

    #[test]
    fn a_failed_walk_ends() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let mut runs = PageRuns::scan(reader.as_fd(), Query::populated(0, PAGE_SIZE));
        assert!(matches!(runs.next(), Some(Err(_))));
        assert!(runs.next().is_none());
    }
}
