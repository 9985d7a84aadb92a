//! Writing down the processes of a tree: their hands are asked, by the thread that holds the tree; what needs neither hand
//! nor ptrace is written by others meanwhile.

use super::address_space::{dump_memory, hand_writes};
use super::descriptors::{self, Owner};
use super::threads;
use super::{About, Files};
use crate::attributes::clocks::Clocks;
use crate::attributes::{cpu_timers, extras, leader, overruns, signals, task, thread};
use crate::files::socket::packet;
use crate::files::{PagesIds, io_uring};
use crate::freeze::{Frozen, Process, Thread};
use crate::memory::{self, AllExtras, MappedFiles, PageCount, PagesPlace};
use crate::parallel;
use crate::precopy::Precopied;
use crate::questions::{self, Questions};
use crate::report::{CheckpointReport, micros};
use crate::sharing::{SharedSpace, UnwrittenSpaces};
use crate::{CheckpointOptions, Error, Progress, Result};
use cryonaut_image::records::{CoreEntry, PstreeEntry, TaskCoreEntry};
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_page_server::Sender;
use cryonaut_puppet::Verdict;
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What is said once for the whole tree, gathered process by process.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    filters: crate::attributes::seccomp::Filters,
    threads: extras::Extras,
    timer_owners: cpu_timers::AllOwners,
    overruns: overruns::AllOverruns,
    rings: io_uring::Names,
    memory: AllExtras,
}

impl Gathered {
    /// Writes it.
    pub fn write(&self, images: &DumpDir) -> Result<()> {
        self.memory.write(images)?;
        extras::write(images, &self.threads)?;
        cpu_timers::write(images, &self.timer_owners)?;
        overruns::write(images, &self.overruns)?;
        io_uring::write_names(images, &self.rings)?;
        Ok(images.write_one(ImageKind::Seccomp, None, self.filters.record())?)
    }
}

/// A process about which the hand and ptrace have told everything.
#[derive(Debug)]
struct Told<'p> {
    process: &'p mut Process,
    questions: Questions,
    task: TaskCoreEntry,
    /// Of its first thread.
    first: (thread::Facts, thread::Told),
    /// Its files, unless another thread writes them.
    owner: Option<Owner>,
    /// Its address space, unless another process has been given it to write.
    space: Option<SharedSpace>,
    /// Where its pages go.
    place: PagesPlace<'p>,
}

/// What came of a process.
#[derive(Debug)]
struct Written {
    /// Of its first thread, and of its leader if that is another.
    extras: Vec<(i32, extras::ThreadExtra)>,
    space: Option<(SharedSpace, memory::Extras)>,
    count: PageCount,
    memory_us: u64,
}

/// What the thread that holds the tree works with.
pub(super) struct Tree<'c, 'a> {
    images: &'a DumpDir,
    files: Files<'c, 'a>,
    clocks: Clocks,
    /// Descriptor tables that are written.
    tables: BTreeSet<u32>,
    gathered: Gathered,
    pages_ids: PagesIds,
    /// Who takes the pages of memory.
    server: Option<&'a Sender>,
    /// Whether it is one process.
    alone: bool,
    /// Whether what may come later stays with its process.
    lazily: bool,
    /// What was copied while the tree ran.
    precopied: Option<&'a Precopied<'a>>,
    /// The files that its processes map.
    mapped: &'a MappedFiles,
    progress: &'a Progress,
    /// Whether another thread writes its files meanwhile.
    files_ahead: bool,
    /// What decides about all, for those in our ipc namespace.
    verdict: Option<&'c Verdict>,
    /// The number of that.
    own_ipc: Option<u32>,
}

impl<'c, 'a> Tree<'c, 'a> {
    /// Of the files that belong to it; nothing is written yet.
    pub fn new(
        (images, files): (&'a DumpDir, Files<'c, 'a>),
        options: &'a CheckpointOptions,
        about: About<'a>,
        (clocks, pages_ids, mapped): (Clocks, PagesIds, &'a MappedFiles),
    ) -> Self {
        Tree {
            images,
            files,
            clocks,
            tables: BTreeSet::new(),
            gathered: Gathered::default(),
            pages_ids,
            server: options.page_server.as_deref(),
            alone: false,
            lazily: options.lazy_pages.is_some(),
            precopied: about.precopied,
            mapped,
            progress: &options.progress,
            files_ahead: false,
            verdict: None,
            own_ipc: about.own.ipc_ns_id,
        }
    }

    /// Writes down all processes.
    pub fn write_all(mut self, frozen: &'c mut Frozen, report: &mut CheckpointReport) -> Result<Gathered> {
        let mut spaces = UnwrittenSpaces::of(&frozen.processes);
        let looking = Instant::now();
        let is_precopied = |p: &Process| self.precopied.is_some_and(|precopied| precopied.of(&[p.pid]).is_some());
        // Roughly: what is shared, or of zeros, is not written for each.
        let to_do = frozen.processes.iter().filter(|p| !is_precopied(p)).map(|p| p.status.rss_anon_kib << 10);
        self.progress.expect(to_do.sum());
        if !self.lazily {
            memory::find_common(&frozen.processes, is_precopied, &mut spaces, (self.images, &self.pages_ids))?;
        }
        report.memory_us += micros(looking.elapsed());
        self.alone = frozen.processes.len() == 1;
        let (processes, verdict) = frozen.parts();
        self.verdict = verdict;
        for processes in processes.chunks_mut(questions::AT_ONCE) {
            report.processes += processes.len();
            report.threads += processes.iter().map(|p| p.threads.len()).sum::<usize>();
            for written in self.write_some(processes, &mut spaces)? {
                report.pages_scanned += written.count.scanned;
                report.pages_written += written.count.written;
                report.pages_in_parent += written.count.in_parent;
                report.pages_lazy += written.count.lazy;
                report.memory_us += written.memory_us;
                self.gathered.threads.extend(written.extras);
                if let Some((space, extras)) = written.space {
                    self.gathered.memory.add(&space.pids, &extras);
                }
            }
        }
        Ok(self.gathered)
    }

    /// Writes down some of the processes.
    fn write_some(&mut self, processes: &mut [Process], spaces: &mut UnwrittenSpaces) -> Result<Vec<Written>> {
        self.files_ahead = parallel::threads_for(processes.len()) > 1 && !processes.iter().any(comes_last);
        if self.files_ahead {
            return self.write_many(processes, spaces);
        }
        let mut asked = self.ask(processes)?;
        let (true, [one], [Some(questions)]) = (self.alone, &mut *processes, &mut asked[..]) else {
            return self.write_asked(processes, asked, spaces);
        };
        // Its hand opens pipes for its memory, which are none of its descriptors.
        let is_precopied = self.precopied.is_some_and(|precopied| precopied.of(&[one.pid]).is_some());
        if hand_writes(one, is_precopied) || comes_last(one) {
            return self.write_asked(processes, asked, spaces);
        }
        // Not before it has answered: it might have to wait for the processor.
        questions.wait(one)?;
        let known = threads_apart(one, questions)?;
        let others = if known.is_some() { one.threads.split_off(1) } else { Vec::new() };
        let written = self.write_alone(processes, asked, spaces, (&others, known));
        if let [one] = processes {
            one.threads.extend(others);
        }
        written
    }

    /// Asks the hands of all that live.
    fn ask(&self, processes: &mut [Process]) -> Result<Vec<Option<Questions>>> {
        // In another ipc namespace it would be something else.
        let verdict_for = |p: &Process| self.verdict.filter(|_| p.ids.is_some_and(|ids| ids.ipc_ns_id == self.own_ipc));
        let ask = |p: &mut Process| {
            if p.is_zombie() {
                return Ok(None);
            }
            let verdict = verdict_for(p);
            Questions::ask(p, verdict).map(Some)
        };
        let asked = processes.iter_mut().map(ask).collect::<Result<_>>()?;
        processes.iter().try_for_each(|process| write_pstree(self.images, process))?;
        Ok(asked)
    }

    /// Writes down so many that it is worth not to let others wait while this thread asks: they begin with all files.
    fn write_many(&mut self, processes: &mut [Process], spaces: &mut UnwrittenSpaces) -> Result<Vec<Written>> {
        let owner = |p: &Process| Some(Owner::of(p, self.tables.insert(p.ids?.files_id)));
        let owners: Vec<Owner> = processes.iter().filter_map(owner).collect();
        let files = self.files;
        let beside = || owners.iter().try_for_each(|owner| descriptors::write(files, owner));
        let (of_files, written) = parallel::both(beside, || {
            let asked = self.ask(processes)?;
            self.write_asked(processes, asked, spaces)
        });
        of_files.and(written)
    }

    /// Writes down a process that is alone and has answered: its files, and those of its threads that are taken apart, are
    /// written by others at the same time.
    fn write_alone(
        &mut self,
        processes: &mut [Process],
        asked: Vec<Option<Questions>>,
        spaces: &mut UnwrittenSpaces,
        (others, known): (&[Thread], Option<threads::Known>),
    ) -> Result<Vec<Written>> {
        let told = threads::read(others, known.unwrap_or_default(), &mut self.gathered.filters)?;
        let (images, files) = (self.images, self.files);
        let owner = processes.first().map(|one| Owner::of(one, true));
        self.files_ahead = true;
        let beside = || -> Result<Vec<(i32, extras::ThreadExtra)>> {
            owner.map_or(Ok(()), |owner| descriptors::write(files, &owner))?;
            threads::write_all(images, told)
        };
        let (of_threads, written) = parallel::both(beside, || self.write_asked(processes, asked, spaces));
        self.gathered.threads.extend(of_threads?);
        written
    }

    /// Writes down those that have been asked.
    fn write_asked(
        &mut self,
        processes: &mut [Process],
        asked: Vec<Option<Questions>>,
        spaces: &mut UnwrittenSpaces,
    ) -> Result<Vec<Written>> {
        let writers = parallel::threads_for(processes.len());
        let files = self.files;
        let (sender, told) = channel();
        let told = Mutex::new(told);
        let by_helpers = Mutex::new(Vec::new());
        let held = parallel::scope(|scope| {
            let (by_helpers, told) = (&by_helpers, &told);
            let help = move || {
                let written = write_told(files, told);
                by_helpers.lock().unwrap_or_else(PoisonError::into_inner).push(written);
            };
            if let Some(scope) = scope {
                (1..writers).for_each(|_| scope.spawn(move |_| help()));
            }
            let (mut own, mut late) = (Vec::new(), Vec::new());
            let mut one = |process, questions| -> Result<()> {
                match self.tell(process, questions, spaces)? {
                    Some(told) if comes_last(told.process) => late.push(told),
                    Some(told) if writers == 1 || told.needs_hand() => own.push(told.write(files, Writer::Holder)?),
                    // The receiver is there until the sender goes.
                    Some(told) => drop(sender.send(told)),
                    None => {}
                }
                Ok(())
            };
            let result = processes.iter_mut().zip(asked).try_for_each(|(process, questions)| one(process, questions));
            drop(sender);
            result?;
            own.extend(write_told(files, told)?);
            Ok::<_, Error>((own, late))
        });
        let (mut all, late) = held?;
        for written in by_helpers.into_inner().unwrap_or_else(PoisonError::into_inner) {
            all.extend(written?);
        }
        for told in late {
            all.push(told.write(files, Writer::Holder)?);
        }
        Ok(all)
    }

    /// What only the holder of the tree can find out about a process, and its
    /// files. `None` for a zombie, of which nothing more is to be written.
    fn tell<'p>(
        &mut self,
        process: &'p mut Process,
        questions: Option<Questions>,
        spaces: &mut UnwrittenSpaces,
    ) -> Result<Option<Told<'p>>>
    where
        'a: 'p,
    {
        let Some(mut questions) = questions else {
            write_zombie(self.images, process)?;
            return Ok(None);
        };
        questions.wait(process)?;
        let Some(ids) = process.ids else { return Ok(None) };
        self.images.write_one(ImageKind::Ids, process.pid as u64, &ids)?;
        self.clocks.note(self.images, ids.time_ns_id, process)?;
        let task = self.task_record(process, &questions)?;
        let speaker = process.speaker();
        let mut told = thread::Told::read(speaker)?;
        let facts = questions.thread.answer(process, speaker, &questions.answers)?;
        told.read_filters(speaker, &facts, &mut self.gathered.filters);
        if let Some(mut hand) = process.hand.take() {
            let others = threads::dump(self.images, process, &mut hand, &facts, &mut self.gathered.filters);
            process.hand = Some(hand);
            self.gathered.threads.extend(others?);
        }
        self.gathered.rings.extend(io_uring::names(process)?);
        let owner = (!self.files_ahead).then(|| Owner::of(process, self.tables.insert(ids.files_id)));
        let space = spaces.take(ids.vm_id);
        let pages_id = if space.is_some() { self.pages_ids.new_id() } else { 0 };
        let (images, server, precopied, files) = (self.images, self.server, self.precopied, Some(self.mapped));
        let (alone, lazily, progress) = (self.alone, self.lazily, Some(self.progress));
        let place = PagesPlace { images, pages_id, server, alone, lazily, precopied, files, progress };
        Ok(Some(Told { process, questions, task, first: (facts, told), owner, space, place }))
    }

    /// The attributes of one living process.
    fn task_record(&mut self, process: &mut Process, asked: &Questions) -> Result<TaskCoreEntry> {
        let b = &asked.answers;
        let mut tc = asked.task.record(process, b)?;
        tc.sigactions = asked.signals.record(b);
        let all = asked.timers.record(process.pid, asked.of_timers())?;
        let owners = cpu_timers::owners(process, &all.posix)?;
        if !owners.is_empty() {
            self.gathered.timer_owners.insert(process.pid, owners);
        }
        let shared = signals::queued(process.speaker(), true)?;
        let overruns = overruns::read(process, &all.posix, &shared)?;
        if !overruns.is_empty() {
            self.gathered.overruns.insert(process.pid, overruns);
        }
        tc.timers = Some(all);
        tc.rlimits = Some(asked.limits.record(b));
        tc.signals_s = Some(shared);
        tc.blk_sigset = process.threads[0].context.sigmask;
        Ok(tc)
    }
}

/// Writes down processes as they are told of, until no more come.
fn write_told(files: Files<'_, '_>, told: &Mutex<Receiver<Told<'_>>>) -> Result<Vec<Written>> {
    let mut all = Vec::new();
    loop {
        let next = told.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(told) => all.push(told.write(files, Writer::Helper)?),
            Err(_) => return Ok(all),
        }
    }
}

/// Who writes a process down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// The thread that holds the tree.
    Holder,
    /// Another, to which hands do not listen.
    Helper,
}

impl Told<'_> {
    /// Whether its memory is not to be written without its hand.
    fn needs_hand(&self) -> bool {
        let Some(space) = &self.space else { return false };
        let is_precopied = self.place.precopied.is_some_and(|precopied| precopied.of(&space.pids).is_some());
        hand_writes(self.process, is_precopied)
    }

    /// Writes what is left to write of the process.
    fn write(self, files: Files<'_, '_>, writer: Writer) -> Result<Written> {
        let Told { process, questions, task, first, owner, space, place } = self;
        // Its hand opens pipes for its memory, which are none of its descriptors.
        owner.map_or(Ok(()), |owner| descriptors::write(files, &owner))?;
        let started = Instant::now();
        let images = place.images;
        let (mut core, extra) = thread::record(&process.threads[0], first.0, first.1)?;
        let mut extras = vec![(process.speaker(), extra)];
        if let Some(ended) = &process.ended {
            images.write_one(ImageKind::Core, process.speaker() as u64, &core)?;
            let (leader, extra) = leader::record(process, ended)?;
            extras.push((process.pid, extra));
            core = leader;
        }
        core.tc = Some(task);
        images.write_one(ImageKind::Core, process.pid as u64, &core)?;
        let mut written = Written { extras, space: None, count: PageCount::default(), memory_us: 0 };
        if let Some(space) = space {
            let mut hand = process.hand.take();
            let listens = hand.as_mut().filter(|_| writer == Writer::Holder);
            let dumped = dump_memory(files, place, process, listens, &space, &questions);
            process.hand = hand;
            let (count, extras) = dumped?;
            written.count = count;
            written.space = Some((space, extras));
        }
        written.memory_us = micros(started.elapsed());
        Ok(written)
    }
}

fn write_zombie(images: &DumpDir, process: &Process) -> Result<()> {
    let core =
        CoreEntry { mtype: crate::arch::MARCH as i32, tc: Some(task::base_record(process)?), ..CoreEntry::default() };
    Ok(images.write_one(ImageKind::Core, process.pid as u64, &core)?)
}

fn write_pstree(images: &DumpDir, process: &Process) -> Result<()> {
    // The leader comes first, also when it has ended.
    let others = process.threads.iter().map(|t| t.tid).filter(|tid| *tid != process.pid);
    let threads = std::iter::once(process.pid).chain(others).map(|tid| tid as u32).collect();
    let entry = PstreeEntry {
        pid: process.pid as u32,
        ppid: process.ppid as u32,
        pgid: process.stat.pgrp as u32,
        sid: process.stat.session as u32,
        threads,
    };
    Ok(images.append(ImageKind::Pstree, None, &entry, None)?)
}

/// What is known of the threads of a process beside its first, if they can be written without it, and it without them.
fn threads_apart(process: &Process, asked: &Questions) -> Result<Option<threads::Known>> {
    // A timer may be one of a thread, and a stop of any.
    if process.threads.len() <= thread::MANY || asked.has_timers() || process.job_stop().is_some() {
        return Ok(None);
    }
    let first = asked.thread.answer(process, process.speaker(), &asked.answers)?;
    Ok(threads::all_known(process, &first))
}

/// Whether others that have a file which a process maps must come before it.
fn comes_last(process: &Process) -> bool {
    process.maps.iter().any(|vma| io_uring::is_mapping(vma) || packet::is_mapping(vma))
}
