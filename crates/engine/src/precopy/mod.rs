//! Precopy in place: the memory of a tree is copied while the tree runs, so
//! that it has to stand still for what it wrote last alone.
//!
//! ```text
//!   track (a short stop) ──round──▶ ... ──pace says so──▶ the freeze: finish ──▶ settle
//! ```
//!
//! A round looks at every tracked process: pages that may have changed since
//! they were last looked at are protected, then looked at, then copied. So what
//! is written at any moment after the look counts as changed in the next round,
//! and a page that was torn by a write while it was copied is copied again. The
//! last round is that of the frozen tree. The result is an ordinary image.
//!
//! | module | owns                                                  |
//! |--------|-------------------------------------------------------|
//! | candidates | which processes are worth it, and bound up with others |
//! | space  | the rounds of one address space                       |
//! | area   | what of it is copied                                   |
//! | in_common | what several have in common by fork: copied once   |
//! | segments | shared memory: who has it, and what else is done to it |
//! | segment | the rounds of one segment of shared memory           |
//! | reader | the memory of a process, read from outside            |
//! | direct_io | who writes to memory past the page tables          |
//! | store  | which of its pages the image has                      |
//! | pages_file | where they lie in their file                      |
//! | sending | how they go to a page server                         |
//! | pace   | whether another round is worth it                     |
//! | processor | how much of the processors it takes                |
//!
//! Copied in the freeze, as without it: small processes and segments, and those
//! that cannot be tracked.

mod area;
mod candidates;
mod direct_io;
mod in_common;
mod pace;
mod pages_file;
mod processor;
mod reader;
mod segment;
mod segments;
mod sending;
mod space;
mod store;

pub use candidates::is_worth_it;
use candidates::{WORTH_KIB, any_is, in_common, share_memory};
use in_common::InCommon;
use segments::Segments;
use space::Round;
pub use space::Space;

use crate::files::PagesIds;
use crate::freeze::{Frozen, Process};
use crate::memory::{PageCount, ranges::Range};
use crate::options::{CheckpointOptions, Pause, PrecopyMode, PrecopyOptions};
use crate::report::{PrecopyReport, Untracked, micros};
use crate::tracking::{Kept, TrackedSpace, end_all};
use crate::{Error, Object, Progress, Result, memory};
use cryonaut_image::{DumpDir, ImageDir, ImageKind, Pagemap};
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::proc::status::Status;
use cryonaut_page_server::{Sender, Target};
use pace::Pace;
use processor::{Share, ahead_of_others};
use rangemap::RangeSet;
use reader::RunningMemory;
use sending::Sending;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::Place;

/// Pages that are not tracked, of which so many are worth another stop.
const WORTH_A_STOP: u64 = 1 << 10;
/// Why what was tracked is not any more.
const GONE: &str = "it has called execve(2), or ended";
/// Why memory is not tracked that is there for several processes: what one look has protected, another would not find.
const SHARED: &str = "it shares its memory with another process without being a thread of it (CLONE_VM)";
/// Most stops to have more tracked.
const MOST_STOPS: u32 = 4;

/// A tree whose memory is being copied.
#[derive(Debug)]
pub struct Precopied<'a> {
    root: i32,
    images: &'a DumpDir,
    options: PrecopyOptions,
    progress: Progress,
    /// How long to wait for the tree to stop.
    timeout: Duration,
    /// By pid.
    spaces: BTreeMap<i32, Mutex<Space>>,
    /// Processes of which it is known that they are not.
    left_out: BTreeSet<i32>,
    /// What processes have in common, of those that were taken on at a time.
    in_common: Vec<InCommon>,
    /// Shared memory; `None` while there was none to be copied.
    segments: Option<Mutex<Segments>>,
    /// Whether there is to be any.
    takes_segments: bool,
    /// Numbers for all files of pages of the image.
    pub pages_ids: PagesIds,
    /// Whether the next round is the last, of a tree that runs: it writes the pagemaps.
    writes_maps: bool,
    /// Who takes the pages in the place of files.
    server: Option<Arc<Sender>>,
    report: PrecopyReport,
    stops: u32,
    /// Of the processors, for what takes long.
    share: Share,
}

/// Tracking that goes on as soon as the image is there that says where it is to be had.
pub type Keeping = (Kept, Vec<TrackedSpace>);

impl<'a> Precopied<'a> {
    /// Copies the memory of a tree again and again while it runs, until the rest is small enough or gets no smaller. One
    /// that `stands_still`, in a closed freezer, writes nothing until it is let out.
    ///
    /// # Errors
    /// If the tree cannot be frozen, or the image not be written; and if the freeze would last longer than it strictly
    /// may.
    pub fn make(root: i32, images: &'a DumpDir, options: &CheckpointOptions, stands_still: bool) -> Result<Self> {
        let mut precopied = Self::begin(root, images, options)?;
        precopied.takes_segments = options.precopy.mode != PrecopyMode::Never;
        let mode = if stands_still { PrecopyMode::Never } else { options.precopy.mode };
        let keeps = options.keep_tracking && !stands_still;
        if mode != PrecopyMode::Never || keeps {
            precopied.track()?;
        }
        let pace = match mode {
            PrecopyMode::Auto | PrecopyMode::Always => Some(precopied.copy()?),
            PrecopyMode::Never => {
                // What is tracked must have been looked at once.
                let mut pace = Pace::new(&precopied.options);
                let looked = keeps.then(|| precopied.look(&mut pace)).transpose()?;
                precopied.prepare();
                looked.map(|_| pace)
            }
        };
        precopied.refuse_direct_io()?;
        if let Some(pace) = pace {
            precopied.judge(&pace)?;
        }
        Ok(precopied)
    }

    /// Takes on what is known of the processes since the parent of the image was made, for a freeze in which what they have
    /// written since is copied: a page server takes each page but once.
    ///
    /// # Errors
    /// If the parent cannot be read.
    pub fn resumed(root: i32, images: &'a DumpDir, options: &CheckpointOptions) -> Result<Self> {
        let mut precopied = Self::begin(root, images, options)?;
        precopied.refuse_direct_io()?;
        precopied.prepare();
        Ok(precopied)
    }

    /// Copies what was written since the parent of the image was made, or all, once, and writes the pagemaps.
    ///
    /// # Errors
    /// As for [`Precopied::make`].
    pub fn pre_dump(root: i32, images: &'a DumpDir, options: &CheckpointOptions) -> Result<(Self, PageCount)> {
        let mut precopied = Self::begin(root, images, options)?;
        precopied.options.mode = PrecopyMode::Always;
        precopied.track()?;
        precopied.writes_maps = true;
        precopied.look(&mut Pace::new(&options.precopy))?;
        let mut count = PageCount::default();
        precopied.spaces.values().map(lock).filter(|space| space.is_there()).for_each(|space| count.add(space.count()));
        Ok((precopied, count))
    }

    /// With what is known of the processes since the parent of the image was made.
    fn begin(root: i32, images: &'a DumpDir, options: &CheckpointOptions) -> Result<Self> {
        let (timeout, parent, progress) = (options.timeout, options.parent.as_ref(), options.progress.clone());
        let server = options.page_server.clone();
        let pages_ids = PagesIds::with_server(server.clone());
        let options = options.precopy.clone();
        let (spaces, report) = (BTreeMap::new(), PrecopyReport::default());
        // Others come first for no longer than leaves time enough for what must follow.
        let share = Share::new(Some(Instant::now() + options.limit / 2));
        let mut precopied = Precopied {
            root,
            images,
            options,
            progress,
            timeout,
            spaces,
            left_out: BTreeSet::new(),
            in_common: Vec::new(),
            segments: None,
            takes_segments: false,
            pages_ids,
            writes_maps: false,
            server,
            report,
            stops: 0,
            share,
        };
        if let Some(parent) = parent {
            precopied.resume(&ImageDir::open(images.path().join(parent))?)?;
        }
        end_all(root)?;
        Ok(precopied)
    }

    /// Takes the tracking on that was kept for the parent of the image, of processes whose pages that has.
    fn resume(&mut self, parent: &ImageDir) -> Result<()> {
        let (tracked, at_server) = Kept::take(parent)?;
        for tracked in tracked {
            let pid = tracked.pid();
            let in_parent = match &self.server {
                Some(server) if !server.has_parent(Target::Process(pid as u64))? => None,
                Some(_) if at_server.contains_key(&pid) => at_server.get(&pid).cloned(),
                _ => pages_in(parent, pid)?,
            };
            let Some(in_parent) = in_parent else {
                tracing::warn!("process {pid}: nobody has its pages of before: all are copied");
                tracked.lift();
                continue;
            };
            let Ok(memory) = RunningMemory::of_task(tracked.task().clone(), pid) else { continue };
            let in_parent = in_parent.into_iter().map(|(start, end)| start..end).collect();
            self.add_space(memory, tracked, in_parent, 0)?;
        }
        Ok(())
    }

    /// Begins with a process, of which so many bytes are expected to be copied.
    fn add_space(
        &mut self,
        memory: RunningMemory,
        tracked: TrackedSpace,
        in_parent: RangeSet<u64>,
        expected: u64,
    ) -> Result<()> {
        let (pid, pages_id) = (tracked.pid(), self.pages_ids.new_id());
        let place = match &self.server {
            Some(server) => Place::Server(Sending::of(pid, server.clone())),
            None => Place::File(self.images.raw_file(ImageKind::Pages, u64::from(pages_id))?),
        };
        let space = Space::new(memory, tracked, (place, pages_id), in_parent, (&self.progress, expected));
        self.spaces.insert(pid, Mutex::new(space));
        Ok(())
    }

    /// A round, of which the pace takes note; whether another is to follow.
    fn look(&mut self, pace: &mut Pace) -> Result<(Round, bool)> {
        let begun = Instant::now();
        let round = self.round()?;
        let took = begun.elapsed();
        let next = pace.after((begun, took), &round);
        self.report.rounds.push(round.report(took));
        Ok((round, next))
    }

    /// Gets ready for the freeze.
    fn prepare(&self) {
        self.spaces.values().for_each(|space| lock(space).prepare(0));
        self.segments.iter().for_each(|segments| lock(segments).prepare());
    }

    /// Has what is done to shared memory counted from now on, if the tree has much of it.
    fn watch_segments(&mut self, least_kib: u64) {
        let is_large = |status: &Status| status.rss_shmem_kib >= least_kib.max(1);
        if !self.takes_segments || self.segments.is_some() || !any_is(self.root, is_large) {
            return;
        }
        match Segments::new() {
            Ok(segments) => self.segments = Some(Mutex::new(segments)),
            Err(errno) => {
                self.takes_segments = false;
                let reason = segments::unavailable(errno).to_string();
                self.report.untracked.push(Untracked { pid: self.root, reason });
            }
        }
    }

    /// Has the writes of the large processes of the tree tracked (of all, if it is always to be done), for which it stands
    /// still for a moment: mappings are registered whole, or programs would notice.
    fn track(&mut self) -> Result<()> {
        let least = if self.options.mode == PrecopyMode::Always { 0 } else { WORTH_KIB };
        let is_large = |p: &Process| !p.is_zombie() && p.status.rss_anon_kib >= least;
        self.watch_segments(least);
        let mut frozen = Frozen::freeze(self.root, self.timeout, None)?;
        let stood_still = Instant::now();
        let gone = self.spaces.iter().filter(|(_, space)| !lock(space).is_there()).map(|(pid, _)| *pid);
        gone.collect::<Vec<_>>().into_iter().try_for_each(|pid| self.leave_out(pid, GONE))?;
        let is_new = |p: &Process| is_large(p) && !self.is_known(p.pid);
        let candidates =
            self.segments.as_ref().map(|segments| lock(segments).candidates(&frozen.processes, least << 10));
        let candidates = candidates.unwrap_or_default();
        let mappers = self.segments.as_ref().map(|segments| lock(segments).to_enter(&candidates)).unwrap_or_default();
        frozen.enter(|p| is_new(p) || mappers.contains(&p.pid))?;
        let mut tracked = BTreeMap::new();
        let mut untracked = Vec::new();
        let sharing = share_memory(frozen.processes.iter().filter(|p| is_large(p)))?;
        for process in frozen.processes.iter_mut().filter(|p| is_large(p)) {
            if let Some(space) = self.spaces.get(&process.pid).filter(|space| lock(space).is_there()) {
                lock(space).register(&process.maps)?;
            } else if is_new(process) && sharing.contains(&process.pid) {
                untracked.push(Untracked { pid: process.pid, reason: SHARED.into() });
            } else if is_new(process) {
                match TrackedSpace::begin(process)? {
                    Ok(space) => drop(tracked.insert(process.pid, space)),
                    Err(reason) => untracked.push(Untracked { pid: process.pid, reason: reason.0 }),
                }
            }
        }
        if let Some(segments) = &self.segments {
            let place = (self.images, &self.pages_ids, &self.progress);
            lock(segments).track(&mut frozen.processes, candidates, place)?;
        }
        let processes = frozen.release_and_tell()?;
        self.report.stops_us.push(micros(stood_still.elapsed()));
        self.left_out.extend(untracked.iter().map(|one| one.pid));
        self.report.untracked.extend(untracked);
        if let Some(segments) = &self.segments {
            lock(segments).refuse_direct_io(self.images)?;
        }
        self.take_on(processes, tracked)
    }

    /// Whether a process is tracked, or known not to be.
    fn is_known(&self, pid: i32) -> bool {
        self.spaces.contains_key(&pid) || self.left_out.contains(&pid)
    }

    /// Begins with processes that are tracked now, as far as that is of use.
    fn take_on(&mut self, processes: Vec<Process>, mut tracked: BTreeMap<i32, TrackedSpace>) -> Result<()> {
        for pid in self.in_common_by_bits(&processes, &tracked)? {
            tracked.remove(&pid);
            self.leave_out(pid, "it has pages in common with another process, which soft-dirty bits do not tell of")?;
        }
        let is_alone = processes.len() == 1;
        self.spaces.values().for_each(|space| lock(space).set_alone(is_alone));
        for process in processes {
            let Some(space) = tracked.remove(&process.pid) else { continue };
            // Who has ended meanwhile is none of the tree any more.
            let Ok(memory) = RunningMemory::open(&process, is_alone) else { continue };
            if let Some(reason) = direct_io::reason(&process.task) {
                self.leave_out(process.pid, reason)?;
                continue;
            }
            self.add_space(memory, space, RangeSet::new(), process.status.rss_anon_kib << 10)?;
        }
        Ok(())
    }

    /// Who has pages in common with others and soft-dirty bits, by which all of these count as written.
    fn in_common_by_bits(&self, processes: &[Process], tracked: &BTreeMap<i32, TrackedSpace>) -> Result<Vec<i32>> {
        let has_bits = |pid: i32| {
            tracked.get(&pid).is_some_and(TrackedSpace::looks_at_rest)
                || self.spaces.get(&pid).is_some_and(|space| lock(space).looks_at_rest())
        };
        if !processes.iter().any(|p| has_bits(p.pid)) {
            return Ok(Vec::new());
        }
        let known = processes.iter().filter(|p| self.is_known(p.pid) || tracked.contains_key(&p.pid));
        let found = in_common(known.collect())?;
        Ok(found.into_iter().filter(|pid| has_bits(*pid)).collect())
    }

    /// Before the first round of processes: what they have in common is copied once, if the image can have it.
    fn copy_in_common(&mut self) -> Result<Round> {
        let mut round = Round::default();
        if self.server.is_some() || !self.images.can_have_layers() {
            return Ok(round);
        }
        // Not by a lock: other threads take part.
        let spaces = self.spaces.iter_mut().map(|(pid, space)| (*pid, space.get_mut()));
        let mut new: Vec<_> = spaces
            .map(|(pid, space)| (pid, space.unwrap_or_else(PoisonError::into_inner)))
            .filter(|(_, space)| space.is_new() && !space.looks_at_rest())
            .collect();
        if new.len() > 1 {
            let into = (self.images, &self.pages_ids);
            self.in_common.extend(InCommon::copy(&mut new, into, &mut self.share, &mut round)?);
        }
        Ok(round)
    }

    /// What was copied of a process is of no use: it will be copied in the freeze, and is not tracked any more.
    fn leave_out(&mut self, pid: i32, reason: &str) -> Result<()> {
        self.report.untracked.push(Untracked { pid, reason: reason.into() });
        self.left_out.insert(pid);
        let Some(space) = self.spaces.remove(&pid) else { return Ok(()) };
        let space = space.into_inner().unwrap_or_else(PoisonError::into_inner);
        space.settle(self.images, false, &mut self.share).map(drop)
    }

    /// The rounds.
    fn copy(&mut self) -> Result<Pace> {
        let mut pace = Pace::new(&self.options);
        let mut is_prepared = false;
        loop {
            let (round, next) = self.look(&mut pace)?;
            if round.untracked >= WORTH_A_STOP && self.stops < MOST_STOPS {
                self.stops += 1;
                self.track()?;
                // Nor is what has been taken on now.
                is_prepared = false;
                continue;
            }
            if is_prepared && !next && self.is_ready() {
                return Ok(pace);
            }
            // What is not known yet when the rounds could end takes another, since this takes its time as well.
            if self.report.rounds.len() == 1 {
                // Of which nothing can be concluded yet.
                self.prepare();
                is_prepared = true;
            } else if !next {
                self.spaces.values().for_each(|space| lock(space).prepare_for_rest());
                self.segments.iter().for_each(|segments| lock(segments).prepare());
                is_prepared = true;
            }
        }
    }

    /// Whether memory is there for what the freeze has to keep.
    fn is_ready(&self) -> bool {
        self.spaces.values().all(|space| lock(space).is_ready())
            && self.segments.iter().all(|segments| lock(segments).is_ready())
    }

    /// Has the tree stand still for a moment, if there are processes that can be looked at only then.
    fn look_at_rest(&mut self) -> Result<()> {
        let looked_at = || self.spaces.values().map(lock).filter(|space| space.looks_at_rest() && space.is_there());
        if looked_at().next().is_none() {
            return Ok(());
        }
        let frozen = Frozen::freeze(self.root, self.timeout, None)?;
        let stood_still = Instant::now();
        looked_at().try_for_each(|mut space| space.look_at_rest())?;
        frozen.release()?;
        self.report.stops_us.push(micros(stood_still.elapsed()));
        Ok(())
    }

    /// One round.
    fn round(&mut self) -> Result<Round> {
        self.look_at_rest()?;
        let mut round = self.copy_in_common()?;
        let mut gone = Vec::new();
        for (pid, space) in &self.spaces {
            let mut space = lock(space);
            let done = match space.is_new() {
                true => space.round(Some(&mut self.share)),
                false => ahead_of_others(|| space.round(None)),
            };
            match done {
                Ok(of_space) => {
                    round.add(of_space);
                    if self.writes_maps {
                        space.write_running_map(self.images)?;
                    }
                }
                Err(e) if !space.is_there() => {
                    tracing::debug!("process {pid}: {e}");
                    gone.push(*pid);
                }
                Err(e) => return Err(e),
            }
        }
        gone.into_iter().try_for_each(|pid| self.leave_out(pid, GONE))?;
        if let Some(segments) = &self.segments {
            round.add(lock(segments).round(&mut self.share)?);
        }
        Ok(round)
    }

    /// What has come to write to its memory past the page tables meanwhile is copied in the freeze.
    fn refuse_direct_io(&mut self) -> Result<()> {
        let spaces = self.spaces.iter().map(|(pid, space)| (*pid, lock(space).direct_io()));
        let found: Vec<_> = spaces.filter_map(|(pid, reason)| Some((pid, reason?))).collect();
        found.into_iter().try_for_each(|(pid, reason)| self.leave_out(pid, reason))?;
        self.segments.iter().try_for_each(|segments| lock(segments).refuse_direct_io(self.images))
    }

    /// Whether the freeze may come.
    fn judge(&mut self, pace: &Pace) -> Result<()> {
        self.report.written_pages_per_second = pace.rate();
        self.report.expected_pause_us = micros(pace.expected_pause());
        if self.options.pause == Pause::Aim || pace.expected_pause() <= self.options.max_pause {
            return Ok(());
        }
        let reason = format!(
            "it writes to {} pages a second: to copy the rest it would have to stand still for {} ms, more than {} ms",
            pace.rate(),
            pace.expected_pause().as_millis(),
            self.options.max_pause.as_millis()
        );
        Err(Error::unsupported(Object::Process(self.root), reason, "allow a longer --max-pause"))
    }

    /// What has been copied of an address space that these processes have, and is not to be thrown away.
    pub fn of(&self, pids: &[i32]) -> Option<MutexGuard<'_, Space>> {
        pids.iter().filter_map(|pid| self.spaces.get(pid)).map(lock).find(|space| space.is_there())
    }

    /// The tree stands still for the last round.
    pub fn stand_still(&self, frozen: &Frozen) {
        self.segments.iter().for_each(|segments| lock(segments).stand_still(frozen));
    }

    /// Whether a mapping of shared memory is protected by our doing.
    #[must_use]
    pub fn has_segment(&self, pid: i32, vma: &Vma) -> bool {
        self.segments.as_ref().is_some_and(|segments| lock(segments).has(pid, vma))
    }

    /// The last round of a segment of shared memory, by its device and inode: the image has it under `id` then. `None` if
    /// it was not copied while the tree ran, or not so that it could be relied on.
    ///
    /// # Errors
    /// If it cannot be read, or the image not be written.
    pub fn finish_segment(&self, file: (u64, u64), id: u64) -> Result<Option<memory::PageCount>> {
        self.segments.as_ref().map_or(Ok(None), |segments| lock(segments).finish(file, self.images, id))
    }

    /// Ends it: the files of pages are in order, and nothing of it is left in the processes, unless their tracking is to be
    /// kept. While the tree `waits` for that, it gets all of the processors.
    ///
    /// # Errors
    /// If the image cannot be written.
    pub fn settle(mut self, keeps: bool, waits: bool) -> Result<(PrecopyReport, Option<Keeping>)> {
        if waits {
            self.share.no_more()
        } else {
            self.share.without_end()
        }
        let (mut tracked, mut at_server) = (Vec::new(), BTreeMap::new());
        for (pid, space) in self.spaces {
            let space = space.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Some((pids, left)) = space.left_to_layers() {
                // The last: who had its pid before has ended.
                self.in_common.iter_mut().rev().any(|one| one.note_last(pid, pids, &left));
            }
            let Some((space, pages)) = space.settle(self.images, keeps, &mut self.share)? else { continue };
            at_server.extend(pages.map(|pages| (space.pid(), pages)));
            tracked.push(space);
        }
        self.in_common.into_iter().try_for_each(|one| one.settle(&mut self.share))?;
        if let Some(segments) = self.segments {
            let mut segments = segments.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.report.untracked.extend(segments.take_untracked());
            segments.settle(self.images, &mut self.share)?;
        }
        let keeping = match tracked.is_empty() {
            true => None,
            false => Some((Kept::note(self.images, self.root, &tracked, at_server)?, tracked)),
        };
        Ok((self.report, keeping))
    }
}

/// The pages of a process that an image has, or its parents have; `None` if they are elsewhere.
fn pages_in(image: &ImageDir, pid: i32) -> Result<Option<Vec<Range>>> {
    if image.entries_optional(ImageKind::Pagemap, pid as u64)?.is_none() {
        return Ok(None);
    }
    let map = Pagemap::read(image, ImageKind::Pagemap, pid as u64)?;
    Ok(Some(map.runs().iter().map(|run| (run.vaddr, run.end())).collect()))
}

fn lock<T>(one: &Mutex<T>) -> MutexGuard<'_, T> {
    one.lock().unwrap_or_else(PoisonError::into_inner)
}
