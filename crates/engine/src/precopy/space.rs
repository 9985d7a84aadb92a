//! One address space that is copied while its process runs.

use super::area::{Area, areas, in_order, near, untracked};
use super::direct_io;
use super::processor::Share;
use super::reader::{RunningMemory, pieces};
use super::store::{Place, Store};
use crate::freeze::Process;
use crate::memory::ranges::{self, Range};
use crate::memory::{Absent, KnownFlags, PAGE, PageCount};
use crate::report::RoundReport;
use crate::report::micros;
use crate::tracking::TrackedSpace;
use crate::{Error, Object, Progress, Result};
use cryonaut_image::{DumpDir, ImageKind, PagemapWriter};
use cryonaut_kernel::pagemap::{Categories, PageRun};
use cryonaut_kernel::proc::maps::{FlaggedVma, Vma};
use rangemap::RangeSet;
use std::os::fd::BorrowedFd;
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
    /// What is to be copied, if the process has been looked at already.
    found: Option<Found>,
    /// How long it took to look at all of it.
    whole_look: Duration,
    /// What is left to the parent is in layers of the image.
    has_layers: bool,
    /// Pages that were copied into layers, for all who have them.
    held: u64,
    /// The pids under which it is in the image.
    ids: Vec<i32>,
}

/// What the next round is to copy.
#[derive(Debug)]
struct Found {
    runs: Vec<(Area, Vec<Range>)>,
    /// How long it took to look for it.
    looking: Duration,
    /// Pages of mappings that are not registered.
    untracked: u64,
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

/// An address space whose tracking is to be kept, and which pages of it are at a page server, if they are.
pub type KeptSpace = (TrackedSpace, Option<Vec<Range>>);

impl Space {
    /// Of a process whose writes are tracked; its pages go to a place, which is `pages-PAGES_ID.img` if it is a file.
    /// The parent of the image has `in_parent`, which is as the process has it as far as it is not written to.
    /// `progress` is told what of the bytes that are `expected` has been copied.
    pub fn new(
        memory: RunningMemory,
        tracked: TrackedSpace,
        (place, pages_id): (Place, u32),
        in_parent: RangeSet<u64>,
        (progress, expected): (&Progress, u64),
    ) -> Space {
        progress.expect(expected);
        let progress = progress.clone();
        let store = Store::new(place, in_parent);
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
            found: None,
            whole_look: Duration::ZERO,
            has_layers: false,
            held: 0,
            ids: Vec::new(),
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
        self.tracked.is_ours()
    }

    /// Has the process's mappings tracked; it must stand still.
    ///
    /// # Errors
    /// As for [`TrackedSpace::register`].
    pub fn register(&mut self, maps: &[Vma]) -> Result<()> {
        self.tracked.register(maps)
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

    /// Whether it has to be [looked at](Space::look_at_rest) before each round.
    #[must_use]
    pub fn looks_at_rest(&self) -> bool {
        self.tracked.looks_at_rest()
    }

    /// Looks for what the next round is to copy, while the process stands still.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn look_at_rest(&mut self) -> Result<()> {
        let looking = Instant::now();
        let maps = self.memory.task.maps()?;
        self.tracked.note_mappings(&maps);
        let mut runs = Vec::new();
        for area in self.areas(&maps) {
            let changed = self.tracked.changed(area.range, !area.is_anonymous)?;
            let its = match area.is_anonymous {
                true => self.find_anonymous(&changed)?,
                false => self.find_of_files(&changed)?,
            };
            runs.push((area, its));
        }
        self.found = Some(Found { runs, looking: looking.elapsed(), untracked: 0 });
        self.tracked.begin_anew()
    }

    /// Looks for what the first round is to copy, while the process runs: from now on writes to that are noted.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn look_ahead(&mut self) -> Result<()> {
        let maps = self.memory.task.maps()?;
        let mut round = Round::default();
        let mut runs = Vec::new();
        for area in self.areas(&maps) {
            runs.push((area, self.look(area, &mut round)?));
        }
        self.found = Some(Found { runs, looking: round.looking, untracked: round.untracked });
        Ok(())
    }

    /// What was found of anonymous memory, ascending.
    #[must_use]
    pub fn found_anonymous(&self) -> Vec<Range> {
        let anonymous = self.found.iter().flat_map(|found| &found.runs).filter(|(area, _)| area.is_anonymous);
        anonymous.flat_map(|(_, runs)| runs).copied().collect()
    }

    /// Its /proc/PID/pagemap.
    #[must_use]
    pub fn pagemap(&self) -> BorrowedFd<'_> {
        self.tracked.pagemap()
    }

    /// Copies pages that others have as well into a store that is for all of them: those that have not been written to since
    /// they were protected. What is not there any more is none of these.
    ///
    /// # Errors
    /// If the kernel does not tell, or the file cannot be written.
    pub fn copy_in_common(
        &mut self,
        pages: &[Range],
        store: &mut Store,
        share: &mut Share,
        round: &mut Round,
    ) -> Result<()> {
        let copying = Instant::now();
        for some in pieces(pages) {
            share.keep();
            if self.memory.read(&some).is_err() {
                continue;
            }
            let mut rest = self.memory.bytes();
            for run in some {
                let (bytes, later) = rest.split_at((run.1 - run.0) as usize);
                rest = later;
                // In this order: had it been written to before it was read, it would be protected no more.
                let same = match self.tracked.unchanged(run) {
                    Err(_) if !self.tracked.is_there() => return Ok(()),
                    told => told?,
                };
                for (start, end) in ranges::common(&[run], &ranges::union(same.iter().map(PageRun::range).collect())) {
                    store.put(start, &bytes[(start - run.0) as usize..(end - run.0) as usize])?;
                }
                let len = run.1 - run.0;
                self.expected = self.expected.saturating_sub(len);
                self.progress.advance(len);
            }
        }
        self.held += store.present_len() / PAGE;
        round.pages += store.present_len() / PAGE;
        round.copying += copying.elapsed();
        Ok(())
    }

    /// Leaves pages, which a layer has as they were protected, to that, until they are written to.
    pub fn leave_to_layers(&mut self, pages: &[Range]) {
        self.has_layers = true;
        self.store.leave_to_parent(pages);
        for (area, runs) in self.found.iter_mut().flat_map(|found| &mut found.runs) {
            if area.is_anonymous {
                *runs = ranges::without(runs, pages);
            }
        }
    }

    /// What is left to layers, and the pids under which the image has it; `None` if that has none of it.
    #[must_use]
    pub fn left_to_layers(&self) -> Option<(&[i32], Vec<Range>)> {
        (self.is_in_image && self.has_layers).then(|| (self.ids.as_slice(), self.store.parent_ranges()))
    }

    /// The memory that is to be copied; what is not there any more is not.
    fn areas(&mut self, maps: &[Vma]) -> Vec<Area> {
        let areas = areas(maps);
        self.store.forget_all_but(&areas.iter().map(|area| area.range).collect::<Vec<_>>());
        areas
    }

    /// Copies what may have changed since the last round, with no more than a share of the processors if there is one.
    ///
    /// # Errors
    /// If the process has ended, or the file cannot be written.
    pub fn round(&mut self, mut share: Option<&mut Share>) -> Result<Round> {
        let mut round = Round::default();
        if let Some(found) = self.found.take() {
            (round.looking, round.untracked) = (found.looking, found.untracked);
            for (area, runs) in found.runs {
                self.copy_area(area, &runs, share.as_deref_mut(), &mut round)?;
            }
        } else {
            let maps = self.memory.task.maps()?;
            for area in self.areas(&maps) {
                let runs = self.look(area, &mut round)?;
                self.copy_area(area, &runs, share.as_deref_mut(), &mut round)?;
            }
        }
        // The freeze has to look at all.
        round.looking = round.looking.max(self.whole_look);
        // All there is, if it is less than was thought.
        self.progress.advance(std::mem::take(&mut self.expected));
        self.last_bytes = Some(round.pages * PAGE);
        Ok(round)
    }

    /// Looks for what is to be copied of the running process, and has the next writes to it noted.
    fn look(&mut self, area: Area, round: &mut Round) -> Result<Vec<Range>> {
        let looking = Instant::now();
        let runs = match area.is_anonymous && !self.is_new() {
            true => self.look_again(area.range, round)?,
            false => self.look_at_all(area, round)?,
        };
        round.looking += looking.elapsed();
        // A server takes each page once.
        Ok(if self.store.is_at_server() { ranges::union(runs) } else { runs })
    }

    fn look_at_all(&mut self, area: Area, round: &mut Round) -> Result<Vec<Range>> {
        let looking = Instant::now();
        // In this order: what is written after the protection is found by the next round.
        let changed = self.tracked.changed(area.range, !area.is_anonymous)?;
        self.whole_look += if self.is_new() { looking.elapsed() } else { Duration::ZERO };
        round.untracked += untracked(&changed);
        match area.is_anonymous {
            true => self.protect_anonymous(area.range, &changed),
            false => self.protect_of_files(&changed),
        }
    }

    /// The same of anonymous memory that has been looked at before: where something was written, for which the kernel has a
    /// short way. What was given back with all of its page table that does not tell: the frozen process is asked for all.
    fn look_again(&mut self, range: Range, round: &mut Round) -> Result<Vec<Range>> {
        let mut runs = Vec::new();
        for some in near(&self.tracked.written(range)?) {
            let changed = self.tracked.changed(some, false)?;
            round.untracked += untracked(&changed);
            runs.extend(self.protect_anonymous(some, &changed)?);
        }
        Ok(runs)
    }

    fn copy_area(&mut self, area: Area, runs: &[Range], share: Option<&mut Share>, round: &mut Round) -> Result<()> {
        let copying = Instant::now();
        let bytes = ranges::len(runs);
        round.pages += bytes / PAGE;
        self.progress.expect(bytes.saturating_sub(self.expected));
        self.expected = self.expected.saturating_sub(bytes);
        self.copy_running(runs, area.is_anonymous, share)?;
        round.copying += copying.elapsed();
        Ok(())
    }

    /// Protects anonymous memory; which pages of it are to be copied. What they hold tells whether they are pages of zeros.
    fn protect_anonymous(&mut self, range: Range, changed: &[PageRun]) -> Result<Vec<Range>> {
        let runs: Vec<Range> = self.tracked.protect(range)?.iter().map(PageRun::range).collect();
        Ok(in_order(runs, self.find_absent(changed)?))
    }

    /// Protects memory of files, of which most pages are the file's own and not to be copied.
    fn protect_of_files(&mut self, changed: &[PageRun]) -> Result<Vec<Range>> {
        for range in changed.iter().map(PageRun::range) {
            self.tracked.protect(range)?;
        }
        // Of what is not tracked the freeze has to copy all again.
        self.find_of_files(changed)
    }

    /// Which pages of anonymous memory that may have changed are to be copied.
    fn find_anonymous(&mut self, changed: &[PageRun]) -> Result<Vec<Range>> {
        let there = changed.iter().filter(|run| run.categories.contains(Categories::PRESENT));
        let runs: Vec<Range> = there.map(PageRun::range).collect();
        Ok(in_order(runs, self.find_absent(changed)?))
    }

    /// The same of those that are not in memory: out of it is not out of the world, they may be in swap.
    fn find_absent(&mut self, changed: &[PageRun]) -> Result<Vec<Range>> {
        let mut runs = Vec::new();
        for absent in changed.iter().filter(|run| !run.categories.contains(Categories::PRESENT)) {
            self.store.forget(absent.range());
            runs.extend(self.own_pages(absent.range())?);
        }
        Ok(runs)
    }

    /// The same of memory of files.
    fn find_of_files(&mut self, changed: &[PageRun]) -> Result<Vec<Range>> {
        let mut runs = Vec::new();
        for range in changed.iter().map(PageRun::range) {
            self.store.forget(range);
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
    ///
    /// # Errors
    /// If the process has ended.
    pub fn stand_still(&mut self) -> Result<()> {
        self.store.keep_late();
        if self.tracked.looks_at_rest() {
            self.tracked.note_mappings(&self.memory.task.maps()?);
        }
        Ok(())
    }

    /// Which pages of a range the frozen process may have written to since the last round, and guard regions in it; the
    /// image has none of them until they are copied. With a `middle` two processors look, each at one side of that.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn last_changes(&mut self, range: Range, is_anonymous: bool, middle: Option<u64>) -> Result<Vec<PageRun>> {
        let mut out = Vec::new();
        let changed = match middle {
            Some(middle) => self.tracked.changed_by_two(range, !is_anonymous, middle)?,
            None => self.tracked.changed(range, !is_anonymous)?,
        };
        for run in changed {
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
    pub fn write_running_map(&mut self, images: &DumpDir) -> Result<()> {
        let mut maps = self.maps(images, &[self.tracked.pid()])?;
        self.write_map(&mut maps)?;
        Ok(maps.into_iter().try_for_each(|map| map.finish().map(drop))?)
    }

    /// Begins its pagemaps, under these ids; none if its pages are at a server.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn maps(&mut self, images: &DumpDir, ids: &[i32]) -> Result<Vec<PagemapWriter>> {
        self.ids = ids.to_vec();
        let ids = if self.store.is_at_server() { &[] } else { ids };
        let map = |id: &i32| PagemapWriter::create(images, ImageKind::Pagemap, *id as u64, self.pages_id);
        Ok(ids.iter().map(map).collect::<std::result::Result<_, _>>()?)
    }

    /// The pages that it has in the image.
    #[must_use]
    pub fn count(&self) -> PageCount {
        let (written, elsewhere) = (self.store.present_len() / PAGE, self.store.parent_len() / PAGE);
        let (written_too, in_parent) = if self.has_layers { (self.held, 0) } else { (0, elsewhere) };
        PageCount { scanned: written + elsewhere, written: written + written_too, in_parent, lazy: 0 }
    }

    /// Of the frozen process the image has pages of `kept` alone, ranges of memory that ascend.
    pub fn keep_only(&mut self, kept: &[Range]) {
        self.store.forget_all_but(kept);
    }

    /// Writes the pagemap.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_map(&mut self, maps: &mut [PagemapWriter]) -> Result<()> {
        self.store.write_map(maps)?;
        self.is_in_image = true;
        Ok(())
    }

    /// Ends the tracking, unless it is to be kept, and puts the file in order, with a share of the processors; it goes if the
    /// image does not name it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn settle(self, images: &DumpDir, keeps: bool, share: &mut Share) -> Result<Option<KeptSpace>> {
        let at_server = self.store.at_server();
        let id = u64::from(self.pages_id);
        let tracked = if keeps && self.is_in_image {
            Some((self.tracked, at_server))
        } else {
            self.tracked.lift();
            None
        };
        match self.is_in_image || self.store.is_at_server() {
            true => self.store.settle(|| Ok(images.raw_file_anew(ImageKind::Pages, id)?), share)?,
            false => images.drop_raw_file(ImageKind::Pages, id)?,
        }
        Ok(tracked)
    }
}
