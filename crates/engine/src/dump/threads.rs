//! The threads of a process beside its first. A few are made to tell of
//! themselves, each by a batch of its own; to wake very many takes long, so
//! what they have is read from the kernel's own structures where it lets us.

use crate::Result;
use crate::attributes::{extras, seccomp, thread};
use crate::freeze::{Process, Thread};
use crate::parallel;
use cryonaut_image::{DumpDir, ImageKind};
use cryonaut_kernel::sys::thread_state;
use cryonaut_puppet::{Batch, Hand, Job};
use std::collections::BTreeMap;

/// How many threads' answers are held at a time.
const AT_ONCE: usize = 64;

/// What the kernel tells of threads that need not be asked, by their ids.
pub type Known = BTreeMap<i32, thread::Facts>;

/// A thread, and what is to be written of it.
#[derive(Debug)]
pub struct Told<'t> {
    thread: &'t Thread,
    facts: thread::Facts,
    told: thread::Told,
}

/// A thread that is to tell of itself.
struct Asked<'t> {
    thread: &'t Thread,
    ask: thread::Ask,
    answers: Batch,
    told: thread::Told,
}

impl<'t> Asked<'t> {
    fn begin(thread: &'t Thread, told: thread::Told) -> Asked<'t> {
        let mut answers = Batch::new();
        let ask = thread::Ask::new(&mut answers);
        Asked { thread, ask, answers, told }
    }

    fn job(&mut self) -> Job<'_> {
        Job { tid: self.thread.tid, context: &self.thread.context, batch: &mut self.answers }
    }

    fn end(self, process: &Process) -> Result<Told<'t>> {
        let Asked { thread, ask, answers, told } = self;
        Ok(Told { thread, facts: ask.answer(process, thread.tid, &answers)?, told })
    }
}

/// Writes the records of all threads but the first, which has answered `first`;
/// what the format has no place for comes back.
pub fn dump(
    images: &DumpDir,
    process: &Process,
    hand: &mut Hand,
    first: &thread::Facts,
    filters: &mut seccomp::Filters,
) -> Result<Vec<(i32, extras::ThreadExtra)>> {
    let others = process.threads.get(1..).unwrap_or_default();
    let mut known = if others.len() > thread::MANY { known(process, first) } else { Known::new() };
    let mut extras = Vec::with_capacity(others.len());
    for some in others.chunks(AT_ONCE) {
        let told = told_of(hand, filters, process, some, &mut known)?;
        extras.extend(write_all(images, told)?);
    }
    Ok(extras)
}

/// What the kernel tells of all threads but the first of a process that has many, none of which has to be asked then.
/// `first` is what that one has answered.
pub fn all_known(process: &Process, first: &thread::Facts) -> Option<Known> {
    let others = process.threads.get(1..).unwrap_or_default();
    let known = if others.len() > thread::MANY { known(process, first) } else { return None };
    others.iter().all(|thread| known.contains_key(&thread.tid)).then_some(known)
}

/// Reads of threads that are known what only ptrace tells.
pub fn read<'t>(threads: &'t [Thread], mut known: Known, filters: &mut seccomp::Filters) -> Result<Vec<Told<'t>>> {
    let mut all = Vec::with_capacity(threads.len());
    for thread in threads {
        let mut told = thread::Told::read(thread.tid)?;
        if let Some(facts) = known.remove(&thread.tid) {
            told.read_filters(thread.tid, &facts, filters);
            all.push(Told { thread, facts, told });
        }
    }
    Ok(all)
}

/// Writes the records of threads; what the format has no place for comes back.
pub fn write_all(images: &DumpDir, told: Vec<Told<'_>>) -> Result<Vec<(i32, extras::ThreadExtra)>> {
    parallel::map(told, |told| write(images, told)).into_iter().collect()
}

/// What can be read of threads that share their credentials with the first of
/// which the process was asked: what that has answered shows whether we
/// understand what we read.
fn known(process: &Process, first: &thread::Facts) -> Known {
    let read = thread_state::of_threads(process.pid);
    let Ok(mut all) = read.inspect_err(|e| tracing::debug!("threads of {} are asked one by one: {e}", process.pid))
    else {
        return Known::new();
    };
    let Some(this) = all.remove(&process.threads[0].tid) else { return Known::new() };
    if thread::Facts::known(&this, &first.creds) != *first {
        tracing::warn!("threads of {} are asked one by one: this kernel's task_struct is not understood", process.pid);
        return Known::new();
    }
    all.retain(|_, state| state.credentials == this.credentials);
    all.into_iter().map(|(tid, state)| (tid, thread::Facts::known(&state, &first.creds))).collect()
}

/// Makes threads tell of themselves that are not their process's hand, if it is
/// not known what they would say.
fn told_of<'t>(
    hand: &mut Hand,
    filters: &mut seccomp::Filters,
    process: &Process,
    threads: &'t [Thread],
    known: &mut Known,
) -> Result<Vec<Told<'t>>> {
    let (mut all, mut to_ask) = (Vec::with_capacity(threads.len()), Vec::new());
    for thread in threads {
        let told = thread::Told::read(thread.tid)?;
        match known.remove(&thread.tid) {
            Some(facts) => all.push(Told { thread, facts, told }),
            None => to_ask.push(Asked::begin(thread, told)),
        }
    }
    hand.run_in_threads(&mut to_ask.iter_mut().map(Asked::job).collect::<Vec<_>>())?;
    for asked in to_ask {
        all.push(asked.end(process)?);
    }
    for Told { thread, facts, told } in &mut all {
        told.read_filters(thread.tid, facts, filters);
    }
    Ok(all)
}

fn write(images: &DumpDir, of: Told<'_>) -> Result<(i32, extras::ThreadExtra)> {
    let tid = of.thread.tid;
    let (core, extra) = thread::record(of.thread, of.facts, of.told)?;
    images.write_one(ImageKind::Core, tid as u64, &core)?;
    Ok((tid, extra))
}
