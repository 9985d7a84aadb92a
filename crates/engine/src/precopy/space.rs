//! One address space that is copied while its process runs.

use super::direct_io;
use super::processor::Share;
use super::reader::{RunningMemory, pieces};
use super::store::Store;
use crate::freeze::Process;
use crate::memory::ranges::{self, Range};
use crate::memory::{self, Absent, KnownFlags, PAGE, PageCount};
use crate::report::RoundReport;
use crate::report::micros;
use crate::tracking::{TrackedSpace, is_tracked};
use crate::{Error, Object, Progress, Result};
use cryonaut_image::{DumpDir, ImageKind, PagemapWriter};
use cryonaut_kernel::pagemap::{Categories, PageRun};
use cryonaut_kernel::proc::maps::{FlaggedVma, Vma};
use rangemap::RangeSet;
use std::fs::File;
use std::time::{Duration, Instant};

/// The address space.
#[derive(Debug)]
pub struct Space {
    memory: RunningMemory,
    tracked: TrackedSpace,
    store: Store,
    pages_id: u32,
    /// What the flags of its mappings look like to the kernel.
    flags: Option<KnownFlags>,
    /// The image names its pages.
    is_in_image: bool,
    progress: Progress,
    /// Bytes that the last round copied; `None` before there was one.
    last_bytes: Option<u64>,
    /// Bytes that were said to be there to be copied, and have not been.
    expected: u64,
}

/// What a round did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Round {
    /// Pages that were copied.
    pub pages: u64,
    /// Pages of mappings that are not registered.
    pub untracked: u64,
    /// How long it took to look for them.
    pub looking: Duration,
    /// How long it took to copy them.
    pub copying: Duration,
}

impl Round {
    /// Takes in what was done for another process.
    pub fn add(&mut self, other: Round) {
        self.pages += other.pages;
        self.untracked += other.untracked;
        self.looking += other.looking;
        self.copying += other.copying;
    }

    /// As it is told.
    #[must_use]
    pub fn report(&self, took: Duration) -> RoundReport {
        RoundReport { pages: self.pages, us: micros(took) }
    }
}

/// Neighbouring mappings of which all, or none, are anonymous memory.
struct Area {
    range: Range,
    is_anonymous: bool,
}

impl Space {
    /// Of a process whose writes are tracked; its pages go into `pages-PAGES_ID.img`, which is `file`.
    /// The parent of the image has `in_parent`, which is as the process has it as far as it is not written to.
    /// `progress` is told what of the bytes that are `expected` has been copied.
    pub fn new(
        memory: RunningMemory,
        tracked: TrackedSpace,
        (file, pages_id): (File, u32),
        in_parent: RangeSet<u64>,
        (progress, expected): (&Progress, u64),
    ) -> Space {
        progress.expect(expected);
        let progress = progress.clone();
        let store = Store::new(file, in_parent);
        Space {
            memory,
            tracked,
            store,
            pages_id,
            flags: None,
            is_in_image: false,
            progress,
            last_bytes: None,
            expected,
        }
    }

    /// The number of its file of pages.
    #[must_use]
    pub fn pages_id(&self) -> u32 {
        self.pages_id
    }

    /// Whether its process still has this memory.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.tracked.is_there()
    }

    /// Whether all write protection of it is of our doing.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.tracked.of_others() == 0
    }

    /// Has the process's mappings tracked; it must stand still.
    pub fn register(&mut self, maps: &[Vma]) {
        self.tracked.register(maps);
    }

    /// Whether no other process is in the tree, as far as is known.
    pub fn set_alone(&mut self, is_alone: bool) {
        self.memory.is_alone = is_alone;
    }

    /// Why what was copied cannot be trusted, if so.
    #[must_use]
    pub fn direct_io(&self) -> Option<&'static str> {
        direct_io::reason(&self.memory.task)
    }

    /// Whether all of it is still to be copied.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.last_bytes.is_none()
    }

    /// Copies what may have changed since the last round, with no more than a share of the processors if there is one.
    ///
    /// # Errors
    /// If the process has ended, or the file cannot be written.
    pub fn round(&mut self, mut share: Option<&mut Share>) -> Result<Round> {
        let maps = self.memory.task.maps()?;
        let areas = areas(&maps);
        self.store.forget_all_but(&areas.iter().map(|area| area.range).collect::<Vec<_>>());
        let mut round = Round::default();
        for area in areas {
            let looking = Instant::now();
            // In this order: what is written after the protection is found by the next round.
            let changed = self.tracked.changed(area.range, !area.is_anonymous)?;
            let is_untracked = |run: &&PageRun| {
                run.categories.contains(Categories::PRESENT) && !run.categories.contains(Categories::WPALLOWED)
            };
            round.untracked += changed.iter().filter(is_untracked).map(|run| (run.end - run.start) / PAGE).sum::<u64>();
            let runs = match area.is_anonymous {
                true => self.protect_anonymous(area.range, &changed)?,
                false => self.protect_of_files(&changed)?,
            };
            round.looking += looking.elapsed();
            let copying = Instant::now();
            let bytes = runs.iter().map(|run| run.1 - run.0).sum::<u64>();
            round.pages += bytes / PAGE;
            self.progress.expect(bytes.saturating_sub(self.expected));
            self.expected = self.expected.saturating_sub(bytes);
            self.copy_running(&runs, area.is_anonymous, share.as_deref_mut())?;
            round.copying += copying.elapsed();
        }
        // All there is, if it is less than was thought.
        self.progress.advance(std::mem::take(&mut self.expected));
        self.last_bytes = Some(round.pages * PAGE);
        Ok(round)
    }

    /// Protects anonymous memory; which pages of it are to be copied. What they hold tells whether they are pages of zeros.
    fn protect_anonymous(&mut self, range: Range, changed: &[PageRun]) -> Result<Vec<Range>> {
        let mut runs: Vec<Range> = self.tracked.protect(range)?.iter().map(PageRun::range).collect();
        for absent in changed.iter().filter(|run| !run.categories.contains(Categories::PRESENT)) {
            self.store.forget(absent.range());
            // Out of memory is not out of the world: it may be in swap.
            runs.extend(self.own_pages(absent.range())?);
        }
        Ok(runs)
    }

    /// Protects memory of files, of which most pages are the file's own and not to be copied.
    fn protect_of_files(&mut self, changed: &[PageRun]) -> Result<Vec<Range>> {
        let mut runs = Vec::new();
        for range in changed.iter().map(PageRun::range) {
            self.tracked.protect(range)?;
            self.store.forget(range);
            // Of what is not tracked the freeze has to copy all again.
            runs.extend(self.own_pages(range)?);
        }
        Ok(runs)
    }

    /// Which pages of a range are the process's own: not the file's, and no guard region.
    fn own_pages(&mut self, range: Range) -> Result<Vec<Range>> {
        let others = Categories::FILE | Categories::GUARD;
        let there = self.tracked.own_pages(range)?;
        Ok(there.iter().filter(|run| !run.categories.intersects(others)).map(PageRun::range).collect())
    }

    /// Copies pages of the running process. What is not there any more is left out: the next round will see it.
    fn copy_running(&mut self, runs: &[Range], is_anonymous: bool, mut share: Option<&mut Share>) -> Result<()> {
        for some in pieces(runs) {
            if let Some(share) = share.as_deref_mut() {
                share.keep();
            }
            if self.memory.read(&some).is_ok() {
                self.put(&some, is_anonymous)?;
                continue;
            }
            for page in some.iter().flat_map(|run| (run.0..run.1).step_by(PAGE as usize)) {
                let page = [(page, page + PAGE)];
                if self.memory.read(&page).is_ok() {
                    self.put(&page, is_anonymous)?;
                }
            }
        }
        Ok(())
    }

    /// Puts what was read; of anonymous memory not the pages of zeros, which is what memory without pages is. What a file
    /// has may change while the process runs, so its pages are all put.
    fn put(&mut self, runs: &[Range], is_anonymous: bool) -> Result<()> {
        let absent = if is_anonymous { Absent::Zeros } else { Absent::Unknown };
        self.progress.advance(self.memory.bytes().len() as u64);
        let mut rest = self.memory.bytes();
        for run in runs {
            let (bytes, later) = rest.split_at((run.1 - run.0) as usize);
            rest = later;
            let same = absent.same(run.0, bytes);
            same.iter().for_each(|same| self.store.forget(*same));
            for (start, end) in ranges::without(&[*run], &same) {
                self.store.put(start, &bytes[(start - run.0) as usize..(end - run.0) as usize])?;
            }
        }
        Ok(())
    }

    /// Gets ready for a freeze in which no more than so many bytes are left.
    pub fn prepare(&mut self, bytes: u64) {
        self.store.prepare(bytes);
        self.flags = KnownFlags::learn(&self.memory.task, self.memory.tid);
    }

    /// The same after rounds, of which the last tells how much will be left; twice of that, since it varies.
    pub fn prepare_for_rest(&mut self) {
        self.prepare(2 * self.last_bytes.unwrap_or(0));
    }

    /// Whether it is ready for a freeze that leaves as much as the last round.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.store.has_room(self.last_bytes.unwrap_or(0))
    }

    /// The mappings of the frozen process, if they can be told without smaps.
    #[must_use]
    pub fn mappings(&self, process: &Process, scratches: &[std::ops::Range<u64>]) -> Option<Vec<FlaggedVma>> {
        self.flags.as_ref()?.of_frozen(process, scratches)
    }

    /// The last round, of the frozen process: from now on contents are kept in memory until the tree goes on.
    pub fn stand_still(&mut self) {
        self.store.keep_late();
    }

    /// Which pages of a range the frozen process may have written to since the last round, and guard regions in it; the
    /// image has none of them until they are copied.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn last_changes(&mut self, range: Range, is_anonymous: bool) -> Result<Vec<PageRun>> {
        let mut out = Vec::new();
        for run in self.tracked.changed(range, !is_anonymous)? {
            // What is in memory and no file's has contents, if only zeros.
            if is_anonymous && run.categories.contains(Categories::PRESENT) {
                out.push(PageRun { categories: Categories::empty(), ..run });
                continue;
            }
            self.store.forget(run.range());
            out.extend(self.tracked.own_pages(run.range())?);
        }
        Ok(out)
    }

    /// Copies pages of the frozen process, of anonymous memory not those of zeros.
    ///
    /// # Errors
    /// If they cannot be read, or not be written.
    pub fn copy(&mut self, runs: &[Range], is_anonymous: bool) -> Result<()> {
        for some in pieces(runs) {
            self.memory.read(&some).map_err(|e| {
                let at = some.first().map_or(0, |run| run.0);
                let object = Object::Mapping(self.memory.tid, at, "memory".into());
                Error::kernel(object, "read its contents", crate::error::errno_of(&e))
            })?;
            self.put(&some, is_anonymous)?;
        }
        Ok(())
    }

    /// Writes the pagemap of the running process as it was found by the last round.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_running_map(&mut self, images: &DumpDir) -> Result<PageCount> {
        let pid = self.tracked.pid() as u64;
        let mut maps = [PagemapWriter::create(images, ImageKind::Pagemap, pid, self.pages_id)?];
        self.store.write_map(&mut maps)?;
        self.is_in_image = true;
        maps.into_iter().try_for_each(|map| map.finish().map(drop))?;
        Ok(self.count())
    }

    fn count(&self) -> PageCount {
        let (written, in_parent) = (self.store.present_len() / PAGE, self.store.parent_len() / PAGE);
        PageCount { scanned: written + in_parent, written, in_parent, lazy: 0 }
    }

    /// Writes the pagemap: of `kept`, ranges of memory that ascend, and of nothing else.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_map(&mut self, maps: &mut [PagemapWriter], kept: &[Range]) -> Result<PageCount> {
        self.store.forget_all_but(kept);
        self.store.write_map(maps)?;
        self.is_in_image = true;
        Ok(self.count())
    }

    /// Ends the tracking, unless it is to be kept, and puts the file in order, with a share of the processors; it goes if the
    /// image does not name it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn settle(self, images: &DumpDir, keeps: bool, share: &mut Share) -> Result<Option<TrackedSpace>> {
        let id = u64::from(self.pages_id);
        let tracked = if keeps && self.is_in_image {
            Some(self.tracked)
        } else {
            self.tracked.lift();
            None
        };
        match self.is_in_image {
            true => self.store.settle(|| Ok(images.raw_file_anew(ImageKind::Pages, id)?), share)?,
            false => images.drop_raw_file(ImageKind::Pages, id)?,
        }
        Ok(tracked)
    }
}

/// The memory that is copied.
fn areas(maps: &[Vma]) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for vma in maps.iter().filter(|vma| is_tracked(vma) && !memory::aio::is_mapping(vma)) {
        let is_anonymous = !vma.has_file();
        match areas.last_mut().filter(|last| last.is_anonymous == is_anonymous && last.range.1 == vma.start) {
            Some(last) => last.range.1 = vma.end,
            None => areas.push(Area { range: (vma.start, vma.end), is_anonymous }),
        }
    }
    areas
}
