//! Write tracking: which pages of a running process have been written to since
//! they were last looked at.
//!
//! By a userfaultfd in asynchronous mode (Linux 6.7): a page is write-protected
//! when it is looked at, the first write to it takes the protection off and
//! goes on, and PAGEMAP_SCAN tells which pages have none. The process makes the
//! userfaultfd (`puppet/userfaultfd.rs`) and keeps nothing of it. When we are
//! killed the kernel closes it, and with it all protection goes.
//!
//! What is not told by this: writes to shared memory by others or by write(2).
//! Who has shared memory tracked has to see to these (`precopy/segments.rs`).
//!
//! A mapping that comes after [`TrackedSpace::register`], or is moved, is not
//! registered, and all of its pages count as written until it is; so do all of
//! an address space that has been left by execve(2).
//!
//! Where the kernel, or the process's filters, do not allow for it, private
//! memory is tracked by soft-dirty bits (`soft_dirty`): without a registration,
//! but looked at only while the process stands still.

mod kept;
mod soft_dirty;

pub use kept::{Kept, end_all, keep_here};

use crate::attributes::filter;
use crate::freeze::{Process, pid_of};
use crate::memory::ranges::Range;
use crate::{Error, Object, Result};
use cryonaut_kernel::pagemap::{Categories, Entry, PageRun, Query, ScanFlags, can_scan, read_entries, scan_or_read};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::{Perms, Vma};
use cryonaut_kernel::uffd::{Features, Mode, Uffd};
use cryonaut_puppet::{farewell_calls, userfaultfd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use soft_dirty::SoftDirty;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of which protection is lifted at a time: the process waits for each
/// piece at most, should it want to change its mappings.
const LIFTED_AT_ONCE: u64 = 16 << 20;
/// Runs of pages that one call tells of.
const RUNS: usize = 4096;
/// What is not there either where nothing can be noted.
const NOR_BITS: &str = ", nor by soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)";

/// An address space whose writes are tracked. No writes are, any more, when it is dropped.
#[derive(Debug)]
pub struct TrackedSpace {
    pid: i32,
    task: Task,
    notes: Notes,
    pagemap: OwnedFd,
    /// Room for what the kernel tells.
    runs: Vec<PageRun>,
    of_others: usize,
    /// Which mappings are.
    tracks: fn(&Vma) -> bool,
}

/// Where writes are noted.
#[derive(Debug)]
enum Notes {
    /// In page tables that are protected by it.
    Userfaultfd(Uffd),
    /// In page tables, by bits.
    SoftDirty(SoftDirty),
}

/// Why writes to a process's memory cannot be tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untracked(pub String);

impl TrackedSpace {
    /// Begins with the private memory of a frozen process that has been entered.
    ///
    /// # Errors
    /// If its hand cannot be driven any more. That it cannot be tracked is an [`Untracked`].
    pub fn begin(process: &mut Process) -> Result<std::result::Result<TrackedSpace, Untracked>> {
        let mut begun = Self::begin_for(process, is_tracked)?;
        if let Ok(space) = &mut begun {
            space.register(&process.maps)?;
        } else if soft_dirty::is_available() {
            // The bits that an image relies on are to be cleared.
            kept::forget(process.pid)?;
            return Self::by_soft_dirty(process.pid, process.task.clone(), true).map(Ok);
        }
        Ok(begun)
    }

    fn by_soft_dirty(pid: i32, task: Task, is_fresh: bool) -> Result<TrackedSpace> {
        let notes = Notes::SoftDirty(SoftDirty::of(&task, is_fresh)?);
        Self::with(pid, task, notes, is_tracked)
    }

    fn with(pid: i32, task: Task, notes: Notes, tracks: fn(&Vma) -> bool) -> Result<TrackedSpace> {
        let pagemap = task.open_file("pagemap", OFlags::RDONLY)?;
        Ok(TrackedSpace { pid, task, notes, pagemap, runs: vec![PageRun::default(); RUNS], of_others: 0, tracks })
    }

    /// The same for such mappings as `tracks` says, of which none is registered yet; by a userfaultfd alone.
    ///
    /// # Errors
    /// As for [`TrackedSpace::begin`].
    pub fn begin_for(
        process: &mut Process,
        tracks: fn(&Vma) -> bool,
    ) -> Result<std::result::Result<TrackedSpace, Untracked>> {
        let (pid, mode) = (process.pid, process.status.seccomp);
        let task = process.task.clone();
        // Without the one, the other is of no use (both are there since Linux 6.7).
        let untold = || Untracked(format!("the kernel cannot note writes by userfaultfd (Linux 6.7 can){NOR_BITS}"));
        if !can_scan() {
            return Ok(Err(untold()));
        }
        let hand = process.hand()?;
        if !filter::permits(hand.tid(), mode, &farewell_calls())
            || !filter::tolerates(hand.tid(), mode, &userfaultfd::calls())
        {
            return Ok(Err(Untracked("its seccomp filters would end it for a call of ours, should we die".into())));
        }
        let uffd = match userfaultfd::of_process(hand) {
            Ok(uffd) => uffd,
            Err(e @ cryonaut_puppet::Error::Call { .. }) => return Ok(Err(Untracked(e.to_string()))),
            Err(e) => return Err(e.into()),
        };
        match uffd.api(Features::WP_ASYNC) {
            Ok(_) => Self::with(pid, task, Notes::Userfaultfd(uffd), tracks).map(Ok),
            Err(_) => Ok(Err(untold())),
        }
    }

    /// Goes on with a process that was tracked before, by its userfaultfd or else by bits that nobody has cleared since.
    /// `None` if it has other memory now.
    ///
    /// # Errors
    /// If the process has ended.
    fn resume(pid: i32, uffd: Option<Uffd>) -> Result<Option<TrackedSpace>> {
        let task = Task::open(pid_of(pid)?)?;
        let space = match uffd {
            Some(uffd) => Self::with(pid, task, Notes::Userfaultfd(uffd), is_tracked)?,
            None => Self::by_soft_dirty(pid, task, false)?,
        };
        Ok(Some(space).filter(TrackedSpace::is_there))
    }

    /// The process's directory in /proc.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn uffd(&self) -> Option<&Uffd> {
        match &self.notes {
            Notes::Userfaultfd(uffd) => Some(uffd),
            Notes::SoftDirty(_) => None,
        }
    }

    /// Registers what is private in these mappings, as far as it is not yet and can be. The process must stand still: a
    /// mapping that is registered in part becomes two, and mremap(2) of both at once fails.
    ///
    /// # Errors
    /// If protection that is not of our doing cannot be taken off.
    pub fn register(&mut self, maps: &[Vma]) -> Result<()> {
        let Notes::Userfaultfd(uffd) = &self.notes else { return Ok(()) };
        self.of_others = 0;
        for vma in maps.iter().filter(|vma| is_tracked(vma)) {
            match register_anew(uffd, &self.pagemap, (vma.start, vma.end), &mut self.runs) {
                Ok(()) => {}
                Err(Failed::ToRegister(Errno::BUSY)) => self.of_others += 1,
                // A kind of memory that cannot be registered: its pages count as written.
                Err(Failed::ToRegister(_)) => {}
                Err(Failed::ToLift(errno)) => return Err(self.failed(vma.start, errno)),
            }
        }
        Ok(())
    }

    /// Registers one mapping, whole; the process must stand still. `false` if it cannot ever be written to.
    ///
    /// # Errors
    /// `EBUSY` if another userfaultfd watches it, and others for memory that cannot be registered.
    pub fn register_one(&self, range: Range) -> std::result::Result<bool, Errno> {
        let Notes::Userfaultfd(uffd) = &self.notes else { return Err(Errno::NOTSUP) };
        match register_anew(uffd, &self.pagemap, range, &mut vec![PageRun::default(); RUNS]) {
            Ok(()) => Ok(true),
            // Its file was opened for reading.
            Err(Failed::ToRegister(Errno::PERM)) => Ok(false),
            Err(Failed::ToRegister(errno) | Failed::ToLift(errno)) => Err(errno),
        }
    }

    /// Pages of a range that may have been written to since they were last protected, and of shared memory those of which
    /// nothing is known: that these are told is to be tried out (`kernel/sys/absent_pages.rs`).
    ///
    /// # Errors
    /// As for [`TrackedSpace::changed`].
    pub fn written(&mut self, range: Range) -> Result<Vec<PageRun>> {
        // For this one question the kernel has a short way, a tenth of the usual one.
        let (all, tell) = (Categories::WRITTEN, Categories::WRITTEN);
        self.all_runs(Query { start: range.0, end: range.1, all, tell, ..Query::default() })
    }

    /// Protects the pages of a range that may have been written to, also where there are none. Returns them.
    ///
    /// # Errors
    /// As for [`TrackedSpace::changed`].
    pub fn protect_shared(&mut self, range: Range) -> Result<Vec<PageRun>> {
        let all = Categories::WRITTEN | Categories::WPALLOWED;
        let flags = ScanFlags::WP_MATCHING;
        self.all_runs(Query { start: range.0, end: range.1, all, flags, ..Query::default() })
    }

    /// Whether all write protection by userfaultfds is of our doing, none of the program's own.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self.notes, Notes::Userfaultfd(_)) && self.of_others == 0
    }

    /// Whether it can be [looked at](TrackedSpace::changed) only while the process stands still, and then has to
    /// [begin anew](TrackedSpace::begin_anew); there is nothing to [protect](TrackedSpace::protect).
    #[must_use]
    pub fn looks_at_rest(&self) -> bool {
        matches!(self.notes, Notes::SoftDirty(_))
    }

    /// Takes note of the mappings of the process, which stands still to be looked at.
    pub fn note_mappings(&mut self, maps: &[Vma]) {
        if let Notes::SoftDirty(bits) = &mut self.notes {
            bits.note_mappings(&self.task, maps);
        }
    }

    /// From now on writes are noted anew, of all memory; the process stands still since it was looked at.
    ///
    /// # Errors
    /// If it has ended.
    pub fn begin_anew(&mut self) -> Result<()> {
        let Notes::SoftDirty(bits) = &mut self.notes else { return Ok(()) };
        bits.clear().map_err(|errno| self.failed(0, errno))
    }

    /// Pages of a range that may not be as they were when they were last protected: written, not there, or not
    /// registered; and those that are a file's. Of a file's mapping, a page that the process has given back
    /// (MADV_DONTNEED) leaves a mark of its protection, and once it is looked at it is the file's, and as protected as its
    /// own was. For that the kernel has to look at each page, so it is asked of files' mappings (`of_file`) alone. Ascending,
    /// each run with PRESENT and WPALLOWED as they are.
    ///
    /// # Errors
    /// If the kernel does not tell; `ESRCH` if the process has ended.
    pub fn changed(&mut self, range: Range, of_file: bool) -> Result<Vec<PageRun>> {
        if let Notes::SoftDirty(bits) = &mut self.notes {
            return bits.changed(&self.pagemap, range).map_err(|errno| self.failed(range.0, errno));
        }
        self.all_runs(changed(range, of_file))
    }

    /// The same of a large range, by a second thread from `middle` on.
    ///
    /// # Errors
    /// As for [`TrackedSpace::changed`].
    pub fn changed_by_two(&mut self, range: Range, of_file: bool, middle: u64) -> Result<Vec<PageRun>> {
        let pagemap = match &self.notes {
            Notes::Userfaultfd(_) => &self.pagemap,
            Notes::SoftDirty(_) => return self.changed(range, of_file),
        };
        let (first, second) = (changed((range.0, middle), of_file), changed((middle, range.1), of_file));
        let mut room = vec![PageRun::default(); RUNS];
        let (here, there) = std::thread::scope(|scope| {
            let there = scope.spawn(|| scan_all(pagemap, second, &mut room));
            (scan_all(pagemap, first, &mut self.runs), there.join())
        });
        let there = there.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut all = here.map_err(|(at, errno)| self.failed(at, errno))?;
        all.extend(there.map_err(|(at, errno)| self.failed(at, errno))?);
        Ok(all)
    }

    /// Pages of a range that surely are as they were when they were last protected: there, registered, and protected still.
    ///
    /// # Errors
    /// As for [`TrackedSpace::changed`].
    pub fn unchanged(&mut self, range: Range) -> Result<Vec<PageRun>> {
        self.all_runs(unchanged(range))
    }

    /// Its /proc/PID/pagemap: that of the memory that is tracked, whatever the process has now.
    #[must_use]
    pub fn pagemap(&self) -> BorrowedFd<'_> {
        self.pagemap.as_fd()
    }

    /// Protects the pages of a range that are there and have been written to: from now on their first write is noted.
    /// Returns them.
    ///
    /// # Errors
    /// As for [`TrackedSpace::changed`].
    pub fn protect(&mut self, range: Range) -> Result<Vec<PageRun>> {
        // Who does not want to be told has everything protected, also what is not there (fs/proc/task_mmu.c).
        self.all_runs(Query {
            start: range.0,
            end: range.1,
            // A guard region is nothing that could be written to.
            inverted: Categories::GUARD,
            all: Categories::WRITTEN | Categories::WPALLOWED | Categories::GUARD,
            any: Categories::PRESENT | Categories::SWAPPED,
            flags: ScanFlags::WP_MATCHING,
            ..Query::default()
        })
    }

    /// Which pages of a range have contents of the process's own, and guard regions in it.
    ///
    /// # Errors
    /// As for [`TrackedSpace::changed`].
    pub fn own_pages(&mut self, range: Range) -> Result<Vec<PageRun>> {
        self.all_runs(own_pages(range))
    }

    fn all_runs(&mut self, query: Query) -> Result<Vec<PageRun>> {
        scan_all(&self.pagemap, query, &mut self.runs).map_err(|(at, errno)| self.failed(at, errno))
    }

    fn failed(&self, at: u64, errno: Errno) -> Error {
        Error::kernel(Object::Mapping(self.pid, at, "memory".into()), "ask which pages were written to", errno)
    }

    /// Whether the process still has the memory that is tracked: not if it has ended or called execve(2).
    #[must_use]
    pub fn is_there(&self) -> bool {
        // Nothing is registered there, or nothing that matters: the answer tells whether there is anything at all.
        const LAST_PAGE: u64 = (1 << 47) - 2 * crate::memory::PAGE;
        let Notes::Userfaultfd(uffd) = &self.notes else {
            // What was opened is of the memory of then.
            return read_entries(&self.pagemap, 0, &mut [Entry::default()]).is_ok_and(|told| told > 0);
        };
        uffd.write_protect(LAST_PAGE, crate::memory::PAGE, false) != Err(Errno::SRCH)
    }

    /// Takes the protection off again, bit by bit: to close the userfaultfd would do it at once, for so long that the
    /// process may notice.
    pub fn lift(self) {
        let Notes::Userfaultfd(uffd) = &self.notes else { return };
        let maps = self.task.maps().unwrap_or_default();
        for vma in maps.iter().filter(|vma| (self.tracks)(vma)) {
            let mut at = vma.start;
            while at < vma.end {
                let len = LIFTED_AT_ONCE.min(vma.end - at);
                if uffd.write_protect(at, len, false).is_err() {
                    break;
                }
                at += len;
            }
        }
    }
}

/// Whether a mapping's pages can be the process's own.
pub fn is_tracked(vma: &Vma) -> bool {
    !vma.perms.contains(Perms::SHARED) && !crate::memory::is_kernels(vma)
}

/// What a query tells, by as many calls as it takes; or at which address it failed.
fn scan_all(
    pagemap: &OwnedFd,
    mut query: Query,
    room: &mut [PageRun],
) -> std::result::Result<Vec<PageRun>, (u64, Errno)> {
    let mut all = Vec::new();
    while query.start < query.end {
        let (count, reached) = scan_or_read(pagemap.as_fd(), &query, room).map_err(|errno| (query.start, errno))?;
        if reached <= query.start {
            return Err((query.start, Errno::IO));
        }
        all.extend_from_slice(&room[..count]);
        query.start = reached;
    }
    Ok(all)
}

/// Why a mapping is not registered.
enum Failed {
    ToRegister(Errno),
    /// It is, but may have protection that says nothing.
    ToLift(Errno),
}

/// Registers a mapping of a process that stands still, and takes protection off that was there before. When memory is moved
/// back to where it was, by mremap(2), its mapping merges with those beside it, and the kernel ends the registration of all
/// that (mremap_userfaultfd_prep in fs/userfaultfd.c): their pages keep the mark of their protection, but are written to
/// unnoticed from then on, also once they are registered again, be it for another image.
fn register_anew(
    uffd: &Uffd,
    pagemap: &OwnedFd,
    range: Range,
    room: &mut [PageRun],
) -> std::result::Result<(), Failed> {
    let (tell, there) = (Categories::empty(), Categories::PRESENT | Categories::SWAPPED);
    let (inverted, all) = (Categories::WPALLOWED, Categories::WPALLOWED);
    let unregistered = Query { start: range.0, end: range.1, inverted, all, any: there, tell, ..Query::default() };
    let before = scan_all(pagemap, unregistered, room).map_err(|(_, errno)| Failed::ToRegister(errno))?;
    uffd.register(range.0, range.1 - range.0, Mode::WP).map_err(Failed::ToRegister)?;
    for run in before {
        for stale in scan_all(pagemap, unchanged(run.range()), room).map_err(|(_, errno)| Failed::ToLift(errno))? {
            uffd.write_protect(stale.start, stale.end - stale.start, false).map_err(Failed::ToLift)?;
        }
    }
    Ok(())
}

/// The query of [`TrackedSpace::unchanged`].
fn unchanged(range: Range) -> Query {
    Query {
        start: range.0,
        end: range.1,
        inverted: Categories::WRITTEN | Categories::GUARD,
        all: Categories::WRITTEN | Categories::WPALLOWED | Categories::GUARD,
        any: Categories::PRESENT | Categories::SWAPPED,
        ..Query::default()
    }
}

/// The query of [`TrackedSpace::changed`].
fn changed(range: Range, of_file: bool) -> Query {
    let tell = Categories::PRESENT | Categories::WPALLOWED;
    let files = if of_file { Categories::FILE } else { Categories::empty() };
    let any = tell | Categories::WRITTEN | files;
    Query { start: range.0, end: range.1, inverted: tell, any, tell, ..Query::default() }
}

/// The query of pages of the process's own: in memory or in swap, not the page of zeros; those that are a file's have
/// [`Categories::FILE`]. With guard regions.
#[must_use]
pub fn own_pages(range: Range) -> Query {
    Query {
        start: range.0,
        end: range.1,
        inverted: Categories::PFNZERO,
        all: Categories::PFNZERO,
        any: Categories::PRESENT | Categories::SWAPPED | Categories::GUARD,
        tell: Categories::FILE | Categories::GUARD,
        flags: ScanFlags::empty(),
        most: 0,
    }
}
