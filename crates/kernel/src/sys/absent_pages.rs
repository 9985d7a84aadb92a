//! Whether PAGEMAP_SCAN tells of shared memory that is registered with a userfaultfd, where it has no page and no mark of
//! protection, as written to: then all that is not told is as it was when it was protected. The kernel promises nothing of
//! the kind, so it is tried out.

use crate::pagemap::{Categories, PageRun, Query, ScanFlags, scan};
use crate::proc::Task;
use crate::uffd::{Features, Mode, Uffd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::os::fd::OwnedFd;

/// Bytes: with some tables of page tables that are not there.
const LEN: usize = 8 << 20;
const PAGE: usize = 4096;

/// Tries it. Errors are those of userfaultfd(2) and its calls.
pub fn are_told() -> Result<bool, Errno> {
    let task = Task::current().map_err(|e| e.errno().unwrap_or(Errno::IO))?;
    let pagemap = task.open_file("pagemap", OFlags::RDONLY).map_err(|e| e.errno().unwrap_or(Errno::IO))?;
    // SAFETY: it is used on memory made here, to which no references exist.
    let uffd = unsafe { Uffd::create() }?;
    uffd.api(Features::WP_ASYNC)?;
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
    // SAFETY: new memory at an address of the kernel's choice, to which nothing refers.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, prot, flags) }?;
    let tried = try_out(&uffd, &pagemap, start.cast());
    // SAFETY: made above; nothing refers to it.
    unsafe { munmap(start, LEN) }?;
    tried
}

fn try_out(uffd: &Uffd, pagemap: &OwnedFd, start: *mut u8) -> Result<bool, Errno> {
    uffd.register(start as u64, LEN as u64, Mode::WP)?;
    let written = |flags, all| -> Result<usize, Errno> {
        let (start, tell) = (start as u64, Categories::WRITTEN);
        let mut runs = [PageRun::default(); 64];
        let query = Query { start, end: start + LEN as u64, all, tell, flags, ..Query::default() };
        let (count, _) = scan(pagemap, &query, &mut runs)?;
        Ok(runs[..count].iter().map(|run| (run.end - run.start) as usize / PAGE).sum())
    };
    let (told, protect) = (Categories::WRITTEN, Categories::WRITTEN | Categories::WPALLOWED);
    // SAFETY: all of it is memory to which no references exist.
    let write = |page: usize| unsafe { start.add(page * PAGE).write_volatile(1) };
    write(0);
    let all = written(ScanFlags::empty(), told)?;
    let protected = written(ScanFlags::WP_MATCHING, protect)?;
    let none = written(ScanFlags::empty(), told)?;
    [0, 1, LEN / PAGE - 1].into_iter().for_each(write);
    let three = written(ScanFlags::empty(), told)?;
    // SAFETY: the memory above; it is shared memory, and stays.
    unsafe { madvise(start.cast(), LEN, Advice::LinuxDontNeed) }?;
    let still_three = written(ScanFlags::empty(), told)?;
    Ok((all, protected, none, three, still_three) == (LEN / PAGE, LEN / PAGE, 0, 3, 3))
}

#[cfg(test)]
mod tests {
    #[test]
    fn absent_pages_count_as_written_to() {
        // Where it cannot be tried, nothing relies on it.
        assert!(super::are_told().unwrap_or(true));
    }
}
