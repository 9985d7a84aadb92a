//! The filler: gives each thread that waits for a page that page, and fills the rest when nobody waits.
//!
//! One thread does all of that; a second helps with the rest (`mate.rs`). It tries again whatever the kernel is just
//! changing (EAGAIN): then an event waits to be read. Pages that are there already (EEXIST) are the program's own, or came
//! from who worked before, or from the second.

use super::filling;
use super::front::{Front, Heard};
use super::mate::Mate;
use super::missing::Part;
use super::pair::Pair;
use super::placing::{Outcome, place, quiet, zeros};
use super::source::Source;
use super::space::Space;
use crate::memory::PAGE;
use cryonaut_kernel::Errno;
use cryonaut_kernel::uffd::{CopyMode, Event, Uffd};
use cryonaut_kernel::uffd_journal::{Entry, Journal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Bytes that are filled at once while nobody waits: as long as who begins to wait then waits for them, too.
const AT_ONCE: u64 = 128 << 10;
/// Bytes that who waits for a page gets with it: neighbours are mostly wanted next.
const WITH_A_FAULT: u64 = 32 << 10;
/// How long to wait while the kernel is changing something, and nobody tells what.
const A_MOMENT: i64 = 1_000_000;
/// The same while a source has nothing to give.
const A_WHILE: i64 = 500_000_000;

/// Where a filler says what goes wrong.
#[derive(Debug)]
pub struct Log(Option<File>);

impl Log {
    /// Writes to the end of a file, which is made if it is not there; nowhere if that cannot be.
    pub fn open(path: &Path) -> Log {
        if let Some(directory) = path.parent() {
            let _ = std::fs::create_dir_all(directory);
        }
        Log(File::options().create(true).append(true).open(path).ok())
    }

    /// Writes to a file that is open.
    pub fn to(file: File) -> Log {
        Log(Some(file))
    }

    /// The open file.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn say(&mut self, line: &str) {
        if let Some(file) = &mut self.0 {
            // There is nobody else to tell.
            let _ = writeln!(file, "Error (cryonaut lazy, process {}): {line}", std::process::id());
        }
    }
}

impl Outcome {
    /// When to try again, if that is to be tried.
    fn pause(self) -> Option<i64> {
        match self {
            Outcome::Done | Outcome::Gone => None,
            Outcome::Changing => Some(A_MOMENT),
            Outcome::Lacking => Some(A_WHILE),
        }
    }
}

/// From whom there is something to read.
#[derive(Debug, Clone, Copy, Default)]
struct ToRead {
    of_front: bool,
    of_spaces: bool,
}

/// A filler at work.
#[derive(Debug)]
pub(super) struct Filler {
    pub(super) spaces: Vec<Space>,
    pub(super) sources: Vec<Box<dyn Source>>,
    pub(super) journal: Journal,
    pub(super) pair: Pair,
    /// None where there is no need of it.
    pub(super) mate: Option<Mate>,
    pub(super) log: Log,
    buffer: Vec<u8>,
    /// Whose turn it is to be filled.
    turn: usize,
    /// Something cannot be had, and that has been said.
    waits: bool,
    /// Nothing is filled any more, only poisoned.
    pub(super) has_given_up: bool,
    /// The processes of the tree that are ended if a source is lost; those that they have made since are not among them.
    /// Whoever takes over has the same: they stay open to the end.
    tree: Vec<OwnedFd>,
    /// Whether it runs, or is about to.
    runs: bool,
    /// The way to the restore. It stays open: its number must not be another's when whoever takes over has its own copy.
    front: Option<Box<dyn Front>>,
    /// Why the tree cannot go on.
    lost: Option<String>,
}

/// The life of a filler that hears of its work from a restore: fills all that is missing. Its exit code.
pub fn run(mut front: Box<dyn Front>, sources: Vec<Box<dyn Source>>, mut log: Log) -> i32 {
    let _note = filling::note();
    let made = Journal::new().and_then(|journal| Ok((journal, Pair::new()?)));
    let (journal, pair) = match made {
        Ok(made) => made,
        Err(errno) => {
            log.say(&format!("memory cannot be filled: {errno}"));
            return 1;
        }
    };
    let buffer = vec![0; AT_ONCE as usize];
    let mut filler = Filler {
        spaces: Vec::new(),
        sources,
        journal,
        pair,
        mate: None,
        log,
        buffer,
        turn: 0,
        waits: false,
        has_given_up: false,
        tree: Vec::new(),
        runs: false,
        front: None,
        lost: None,
    };
    match filler.prepare(front.as_mut()) {
        Ok(true) => {
            filler.front = Some(front);
            filler.work()
        }
        Ok(false) => 1,
        Err(problem) => {
            filler.log.say(&format!("the restore cannot be followed: {problem}"));
            // Before its processes end, which it would notice.
            let _ = front.refuse(&problem);
            filler.end_tree();
            1
        }
    }
}

impl Filler {
    /// Takes address spaces in, and serves who waits already, until the tree is about to run; whether it is. Fails with what
    /// to tell the restore.
    fn prepare(&mut self, front: &mut dyn Front) -> Result<bool, String> {
        let mut pause = None;
        loop {
            if let Some(runs) = self.hear(front, pause).map_err(|error| error.to_string())? {
                return Ok(runs);
            }
            // Who waits already is not forgotten where memory is short for a moment.
            pause = self.serve(true).pause();
            if let Some(why) = self.lost.take() {
                return Err(why);
            }
        }
    }

    /// Hears what there is, if there is something before somebody waits for a page or the pause is over. Whether the tree
    /// runs, or never will.
    fn hear(&mut self, front: &mut dyn Front, pause: Option<i64>) -> std::io::Result<Option<bool>> {
        let heard = if self.wait(Some(front.as_fd()), pause)?.of_front { front.hear()? } else { Vec::new() };
        for heard in heard {
            match heard {
                Heard::Source(source) => self.sources.push(source),
                Heard::Process(process) => self.tree.push(process),
                Heard::Space(space) => self.spaces.push(space),
                Heard::Gone => return Ok(Some(false)),
                Heard::Go => {
                    if !front.is_own() {
                        // What ends one is not to end the other as well: nobody would be left.
                        cryonaut_kernel::sys::signal::block_all();
                    }
                    self.runs = true;
                    self.hire()?;
                    // This may be the keeper, long after the other has answered and the restore has ended. If it
                    // is not and nobody hears it, the tree is killed, and its memory is found gone.
                    let _ = front.answer();
                    return Ok(Some(true));
                }
            }
        }
        if self.journal.is_full() {
            // Nobody is there yet to read it.
            self.journal = Journal::new()?;
        }
        Ok(None)
    }

    /// Fills everything.
    fn work(mut self) -> i32 {
        let mut outcome = Outcome::Done;
        while !self.spaces.is_empty() {
            if let Err(errno) = self.look_after_pair() {
                self.log.say(&format!("nobody is there to take over if this process is killed: {errno}"));
                // Without a journal nothing may be read. Whoever needs a processor or memory more has it meanwhile.
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
            // Failing, it only was no pause.
            let heard = self.wait(None, Some(outcome.pause().unwrap_or(0))).unwrap_or_default();
            outcome = match self.serve(heard.of_spaces) {
                Outcome::Done => {
                    self.employ_mate();
                    self.fill_some()
                }
                other => other,
            };
        }
        self.dismiss_mate();
        self.pair.part();
        for source in &mut self.sources {
            if let Err(error) = source.finish() {
                self.log.say(&format!("all memory is there, but its source was not told: {error}"));
            }
        }
        i32::from(self.lost.is_some())
    }

    /// Waits until something is to be read, at most so many nanoseconds.
    fn wait(&self, front: Option<BorrowedFd<'_>>, pause: Option<i64>) -> Result<ToRead, Errno> {
        let pause = pause.map(|nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds });
        let mut watched: Vec<PollFd<'_>> = Vec::with_capacity(self.spaces.len() + 2);
        watched
            .extend(front.into_iter().chain(self.pair.keeper()).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let others = watched.len();
        watched.extend(self.spaces.iter().map(|space| PollFd::new(&*space.uffd, PollFlags::IN)));
        rustix::io::retry_on_intr(|| poll(&mut watched, pause.as_ref()))?;
        let of_front = front.is_some() && !watched[0].revents().is_empty();
        Ok(ToRead { of_front, of_spaces: watched[others..].iter().any(|one| !one.revents().is_empty()) })
    }

    /// Reads all events if there may be any, and gives who waits what it waits for.
    fn serve(&mut self, is_told: bool) -> Outcome {
        let mut worst = Outcome::Done;
        let mut index = 0;
        while index < self.spaces.len() {
            if is_told {
                self.read_events(index);
            }
            let outcome = self.answer_faults(index);
            if outcome == Outcome::Gone && self.leave(index) {
                continue;
            }
            if outcome != Outcome::Done {
                worst = outcome;
            }
            index += 1;
        }
        worst
    }

    fn read_events(&mut self, index: usize) {
        let mut events = Vec::new();
        let held = self.mate.as_ref().map(Mate::hold);
        let mut has_changed = false;
        // EAGAIN: there is none. A full journal is replaced before the next turn.
        while !self.journal.is_full() && self.journal.read(&self.spaces[index].uffd, &mut events).is_ok() {
            for event in events.drain(..) {
                has_changed |= !matches!(event, Event::Pagefault { .. });
                if let Some(child) = self.spaces[index].follow(event) {
                    self.spaces.push(child);
                }
            }
        }
        if let Some(mut held) = held.filter(|_| has_changed) {
            held.void(&mut self.spaces);
        }
    }

    fn answer_faults(&mut self, index: usize) -> Outcome {
        while let Some(&page) = self.spaces[index].faults.last() {
            let space = &mut self.spaces[index];
            let outcome = match space.missing.at(page) {
                Some(part) => {
                    space.next = part.start + WITH_A_FAULT;
                    self.install(index, Part { len: part.len.min(WITH_A_FAULT), ..part })
                }
                None => zeros(&space.uffd, page),
            };
            self.note_quiet(index, outcome);
            let space = &mut self.spaces[index];
            match outcome {
                Outcome::Done => {
                    // Where it was there already, or is nobody's any more, nothing has woken them.
                    let _ = space.uffd.wake(page, PAGE);
                    space.faults.pop();
                }
                other => return other,
            }
        }
        Outcome::Done
    }

    /// Fills a piece of what nobody waits for.
    fn fill_some(&mut self) -> Outcome {
        if self.spaces.is_empty() {
            return Outcome::Done;
        }
        self.turn = (self.turn + 1) % self.spaces.len();
        let space = &mut self.spaces[self.turn];
        let outcome = match space.missing.next(space.next, AT_ONCE) {
            Some(part) => {
                space.next = part.end();
                self.install(self.turn, part)
            }
            // What is displaced is missing again when what is on its way has been told.
            None => quiet(&space.uffd),
        };
        self.note_quiet(self.turn, outcome);
        let is_filled = outcome == Outcome::Done && self.spaces[self.turn].missing.is_empty();
        if outcome == Outcome::Gone || is_filled {
            // Otherwise once more, when there is room to note it.
            self.leave(self.turn);
            return Outcome::Done;
        }
        outcome
    }

    /// The kernel has filled something in an address space, or would have, so nothing is on its way to be told.
    fn note_quiet(&mut self, index: usize, outcome: Outcome) {
        let space = &mut self.spaces[index];
        // Without room for the note, who takes over would not know: then it is done the next time.
        if outcome == Outcome::Done && !self.journal.is_full() && space.is_quiet() {
            let _ = self.journal.note_quiet(&space.uffd);
        }
    }

    /// Nothing is missing any more, or nobody is there to miss it. Fails when that cannot be noted yet.
    fn leave(&mut self, index: usize) -> bool {
        let noted = self.journal.note_closed(&self.spaces[index].uffd).is_ok();
        if noted {
            // Orders tell spaces by their places.
            self.mate.iter().for_each(|mate| mate.hold().void(&mut self.spaces));
            // Who waits is woken by the close, and goes on with a page of zeros.
            drop(self.spaces.swap_remove(index));
        }
        noted
    }

    /// Puts pages in place that are in one part.
    fn install(&mut self, index: usize, part: Part) -> Outcome {
        if self.has_given_up {
            return self.poison(index, part).0;
        }
        let room = &mut self.buffer[..part.len as usize];
        if let Err(error) = self.sources[part.source as usize].read(part.offset, room) {
            return self.spoil(index, part, &error);
        }
        let space = &mut self.spaces[index];
        put(space, part, |uffd, at, from, len| uffd.copy(at, &room[from..from + len], CopyMode::empty()))
    }

    /// Pages that cannot be had any more must not be zeros: who touches them is told by SIGBUS. Before Linux 6.6, who
    /// touches them waits for as long as they are not to be had.
    fn spoil(&mut self, index: usize, part: Part, error: &std::io::Error) -> Outcome {
        if self.sources[part.source as usize].is_lost() {
            self.lose(&error.to_string());
        }
        let (outcome, is_unknown) = self.poison(index, part);
        let space = &self.spaces[index];
        let problem = format!(
            "{} bytes of the memory of process {} at {:#x} cannot be read from the image: {error}",
            part.len, space.pid, part.start
        );
        if is_unknown && !self.waits {
            self.log.say(&format!("{problem}; who touches them waits until they can be"));
        } else if outcome == Outcome::Done {
            self.log.say(&format!("{problem}; who touches them gets a SIGBUS"));
        }
        self.waits |= is_unknown;
        outcome
    }

    /// Whether the kernel cannot do that is told, too.
    fn poison(&mut self, index: usize, part: Part) -> (Outcome, bool) {
        let mut is_unknown = false;
        let outcome = put(&mut self.spaces[index], part, |uffd, at, _, len| {
            uffd.poison(at, len as u64).inspect_err(|errno| is_unknown = *errno == Errno::INVAL)
        });
        (outcome, is_unknown)
    }

    /// Fills nothing any more.
    pub(super) fn give_up(&mut self, why: &str) {
        self.has_given_up = true;
        self.log.say(&format!("memory is not filled any more: {why}; who touches what is missing gets a SIGBUS"));
    }

    /// A source is lost, and nothing else has its pages: the tree cannot go on.
    fn lose(&mut self, why: &str) {
        if self.lost.is_none() {
            self.give_up(why);
            self.lost = Some(why.to_owned());
            // Until it runs, the restore is told by who hears it.
            if self.runs {
                // It may not have ended yet. If it has, nobody hears this.
                let _ = self.front.as_mut().map(|front| front.refuse(why));
                self.end_tree();
            }
        }
    }

    fn end_tree(&mut self) {
        if !self.tree.is_empty() {
            self.log.say("the tree is ended, since its memory is lost");
        }
        for process in &self.tree {
            // Fails for one that has ended.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Takes the place of who has worked until now and left this journal.
    pub(super) fn take_over(&mut self, mut left: Journal) {
        for entry in left.replay() {
            let number = match entry {
                Entry::Event(number, _) | Entry::Closed(number) | Entry::Quiet(number) => number,
            };
            let Some(index) = self.spaces.iter().position(|space| space.uffd.as_fd().as_raw_fd() == number) else {
                continue;
            };
            match entry {
                // Its number is closed, or another's by now.
                Entry::Closed(_) => std::mem::forget(self.spaces.swap_remove(index).uffd),
                Entry::Quiet(_) => drop(self.spaces[index].is_quiet()),
                Entry::Event(_, event) => {
                    let child = self.spaces[index].follow(event);
                    self.spaces.extend(child);
                }
            }
        }
        let failures: Vec<_> = self.sources.iter_mut().filter_map(|source| source.take_over().err()).collect();
        if let Some(error) = failures.first() {
            self.lose(&error.to_string());
        }
        for space in &mut self.spaces {
            // Who was told of is not told of again, unless it is woken and faults once more.
            space.faults.clear();
            let _ = space.uffd.wake(LOWEST, HIGHEST - LOWEST);
        }
        self.journal = left;
    }
}

/// All that a program may have mapped (vm.mmap_min_addr, TASK_SIZE).
const LOWEST: u64 = 0x1_0000;
const HIGHEST: u64 = 0x7fff_ffff_f000;

/// Puts the pages of a part in place by `how`, and notes what is not missing any more.
fn put(space: &mut Space, part: Part, how: impl FnMut(&Uffd, u64, usize, usize) -> Result<usize, Errno>) -> Outcome {
    let Space { uffd, missing, .. } = space;
    place(uffd, part, how, |(start, end)| drop(missing.remove(start, end)))
}
