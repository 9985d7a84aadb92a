//! Probes of what is needed to read, track and fill memory.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{present, proc_errno};
use crate::pagemap::{Categories, Entry, PAGE_SIZE, PageRun, Query, read_entries, scan};
use crate::proc::{Task, maps};
use crate::uffd::{self, Features};

/// A page of private memory, mapped until it is dropped.
struct Page(*mut std::ffi::c_void);

impl Page {
    fn new() -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at the kernel's choice of address overlaps nothing of ours.
        unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_SIZE as usize, prot, MapFlags::PRIVATE) }.map(Self)
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }

    fn touch(&self) {
        // SAFETY: the byte lies in the mapping, to which no reference exists.
        unsafe { self.0.cast::<u8>().write_volatile(1) }
    }

    /// Makes it a guard region.
    fn guard(&self) -> Result<(), Errno> {
        let (start, advice) = (self.0, linux_raw_sys::general::MADV_GUARD_INSTALL);
        // SAFETY: the page is dropped from the mapping, to which no reference exists, and is not touched any more.
        crate::sys::check(unsafe { libc::syscall(libc::SYS_madvise, start, PAGE_SIZE as usize, advice) }).map(drop)
    }

    fn query(&self) -> Query {
        Query { start: self.address(), end: self.address() + PAGE_SIZE, ..Query::default() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new`, and no reference to it exists. Unmapping one whole mapping cannot fail.
        let _ = unsafe { munmap(self.0, PAGE_SIZE as usize) };
    }
}

fn own(name: &str) -> Result<OwnedFd, Errno> {
    Task::current().and_then(|me| me.open_file(name, OFlags::RDONLY)).map_err(proc_errno)
}

pub(super) fn pagemap_scan() -> Result<(), Errno> {
    let page = Page::new()?;
    page.touch();
    let mut runs = [PageRun::default(); 1];
    let query = Query { all: Categories::PRESENT, tell: Categories::PRESENT, ..page.query() };
    present(scan(own("pagemap")?, &query, &mut runs)?.0 == 1)
}

pub(super) fn procmap_query() -> Result<(), Errno> {
    let page = Page::new()?;
    let found = maps::query(own("maps")?, page.address())?;
    present(found.is_some_and(|vma| vma.start <= page.address() && page.address() < vma.end))
}

pub(super) fn map_files() -> Result<(), Errno> {
    let me = Task::current().map_err(proc_errno)?;
    let maps = me.maps().map_err(proc_errno)?;
    let file = maps.iter().find(|vma| vma.has_file()).ok_or(Errno::NOENT)?;
    // Following the link, not reading it, is what needs the right.
    me.open_file(&file.map_files_name(), OFlags::PATH).map(drop).map_err(proc_errno)
}

fn entry(page: &Page) -> Result<Entry, Errno> {
    let mut entry = [Entry::default()];
    read_entries(own("pagemap")?, page.address(), &mut entry)?;
    Ok(entry[0])
}

pub(super) fn soft_dirty() -> Result<(), Errno> {
    let page = Page::new()?;
    page.touch();
    // A page that has just been written is soft-dirty without a clear_refs before.
    present(entry(&page)?.categories().contains(Categories::SOFT_DIRTY))
}

fn uffd_with(wanted: Features) -> Result<(), Errno> {
    present(uffd::features()?.contains(wanted))
}

pub(super) fn uffd() -> Result<(), Errno> {
    uffd_with(Features::empty())
}

pub(super) fn uffd_wp() -> Result<(), Errno> {
    uffd_with(Features::PAGEFAULT_FLAG_WP)
}

pub(super) fn uffd_wp_unpopulated() -> Result<(), Errno> {
    uffd_with(Features::WP_UNPOPULATED)
}

pub(super) fn uffd_wp_shmem() -> Result<(), Errno> {
    uffd_with(Features::WP_HUGETLBFS_SHMEM)
}

pub(super) fn uffd_wp_async() -> Result<(), Errno> {
    uffd_with(Features::WP_ASYNC)
}

pub(super) fn uffd_missing_shmem() -> Result<(), Errno> {
    uffd_with(Features::MISSING_SHMEM)
}

pub(super) fn uffd_events() -> Result<(), Errno> {
    uffd_with(Features::EVENT_FORK | Features::EVENT_REMAP | Features::EVENT_REMOVE | Features::EVENT_UNMAP)
}

pub(super) fn uffd_move() -> Result<(), Errno> {
    uffd_with(Features::MOVE)
}

pub(super) fn guard_regions() -> Result<(), Errno> {
    Page::new()?.guard()
}

pub(super) fn pagemap_scan_guard() -> Result<(), Errno> {
    let page = Page::new()?;
    page.guard()?;
    let mut runs = [PageRun::default(); 1];
    let query = Query { all: Categories::GUARD, tell: Categories::GUARD, ..page.query() };
    present(scan(own("pagemap")?, &query, &mut runs)?.0 == 1)
}

pub(super) fn pagemap_guard() -> Result<(), Errno> {
    let page = Page::new()?;
    page.guard()?;
    present(entry(&page)?.categories().contains(Categories::GUARD))
}

pub(super) fn memfd_hugetlb() -> Result<(), Errno> {
    rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).map(drop)
}
