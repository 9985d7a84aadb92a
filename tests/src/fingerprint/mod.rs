//! Fingerprints: everything that the kernel tells about a process tree, as a flat list of fields, so that the tree
//! before a checkpoint and the tree after the restore can be compared word for word.
//!
//! A [`Fingerprint`] reads /proc, the descriptors (by duplicates of them), `kcmp`, the contents of memory, and what a
//! short visit by ptrace tells; it changes nothing that the tree could notice. Everything is recorded, also what a
//! restore cannot keep: [`rules`] is the list of what may differ, each entry with its reason, and nothing else may.
//! What changes by itself in a tree that nobody touches (clocks that run, a thread that works) is found by looking
//! more than once before the checkpoint: see [`Baseline`].

mod descriptors;
mod difference;
mod identity;
mod inet;
mod memory;
mod mounts;
mod network;
mod process;
pub mod rules;
mod sockets;
#[cfg(test)]
mod tests;
mod visit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cryonaut_kernel::sys::sock_diag::InetDetail;
use rustix::io::Errno;
use rustix::process::Pid;

pub use difference::{Difference, differences};
use identity::Identities;
pub(crate) use process::{speaker, threads as own_threads};
use rules::Rule;

/// What a field is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A process.
    Process(i32),
    /// A thread, by its process and its own id.
    Thread(i32, i32),
    /// A descriptor, by process and number.
    Descriptor(i32, i32),
    /// A mapping, by process and range of addresses.
    Mapping(i32, u64, u64),
}

impl Object {
    /// The word by which rules name objects of this sort.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Thread(..) => "thread",
            Self::Descriptor(..) => "descriptor",
            Self::Mapping(..) => "mapping",
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Thread(pid, tid) => write!(f, "thread {tid} of process {pid}"),
            Self::Descriptor(pid, fd) => write!(f, "descriptor {fd} of process {pid}"),
            Self::Mapping(pid, start, end) => write!(f, "mapping {start:x}-{end:x} of process {pid}"),
        }
    }
}

/// One thing that is told of an object, as `SOURCE.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// The object.
    pub object: Object,
    /// The name.
    pub name: String,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.object, self.name)
    }
}

/// What a tree looks like at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint {
    fields: BTreeMap<Field, String>,
}

impl Fingerprint {
    /// Looks at the processes of a tree. A process that ends meanwhile is told as far as it can be.
    pub fn take(pids: &[Pid]) -> Self {
        let mut taking = Taking::default();
        let mut pids = pids.to_vec();
        pids.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        descriptors::take(&mut taking, &pids);
        let mut places = Vec::new();
        for pid in &pids {
            process::take(&mut taking, *pid);
            places.push((*pid, std::mem::take(&mut taking.threads)));
        }
        for pid in &pids {
            // Whoever runs in the same memory has its stacks there, too.
            let shares = |other: Pid| other == *pid || process::share_memory(*pid, other);
            let there = places.iter().filter(|(other, _)| shares(*other));
            taking.threads = there.flat_map(|(_, threads)| threads.iter().copied()).collect();
            memory::take(&mut taking, *pid);
        }
        process::take_sharing(&mut taking, &pids);
        Self { fields: taking.fields }
    }

    /// Looks at the namespaces of a process, its mounts, network and cgroups: at what is around it, not at itself.
    pub(crate) fn of_surroundings(pid: Pid) -> Self {
        let mut taking = Taking::default();
        process::take_surroundings(&mut taking, pid);
        Self { fields: taking.fields }
    }

    /// Every field, and its value.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(field, value)| (field.name.as_str(), value.as_str()))
    }

    /// The value of a field.
    pub fn get(&self, object: &Object, name: &str) -> Option<&str> {
        self.fields.get(&Field { object: object.clone(), name: name.to_owned() }).map(String::as_str)
    }

    /// Whether a thread was met at work.
    fn works(&self) -> bool {
        self.fields.iter().any(|(field, value)| field.name == "call" && value == "running")
    }
}

/// Where a thread has what the kernel, or the thread itself, writes to at any time.
#[derive(Debug, Default, Clone, Copy)]
struct ThreadPlaces {
    stack_pointer: Option<u64>,
    /// Its area of restartable sequences, if a visit has told.
    rseq: Option<u64>,
    robust_list: u64,
}

/// A fingerprint under way.
#[derive(Debug, Default)]
struct Taking {
    fields: BTreeMap<Field, String>,
    identities: Identities,
    /// What is known of the threads of the process at hand, or of all in its memory.
    threads: Vec<ThreadPlaces>,
    /// From a thread's robust list to its area of restartable sequences.
    rseq_distance: Option<u64>,
    /// What sock_diag has told of sockets of the internet, by family and protocol.
    inet: BTreeMap<(u8, u8), Result<Vec<InetDetail>, Errno>>,
}

impl Taking {
    fn put(&mut self, object: &Object, name: impl Into<String>, value: impl Into<String>) {
        let mut value = value.into();
        while value.ends_with(['\n', ' ']) {
            value.pop();
        }
        self.fields.insert(Field { object: object.clone(), name: name.into() }, value);
    }

    /// A value, or the kernel's answer in its place: which calls are refused is a fact as well.
    fn put_result<T: fmt::Display>(&mut self, object: &Object, name: impl Into<String>, result: Result<T, Errno>) {
        let value = match result {
            Ok(value) => value.to_string(),
            Err(errno) => format!("({errno:?})"),
        };
        self.put(object, name, value);
    }
}

/// A tree at rest, and which of its fields do not rest.
#[derive(Debug, Clone)]
pub struct Baseline {
    print: Fingerprint,
    /// It never came to rest: where each thread is, is chance.
    restless: bool,
    moving: BTreeSet<Field>,
}

impl Baseline {
    /// How often is looked at most until nothing moves any more.
    const LOOKS: usize = 25;
    /// When looking takes its time, no more is looked than needed.
    const LONG_ENOUGH: Duration = Duration::from_millis(700);
    /// How often is looked at most until a tree that has been let go is as it was.
    const PATIENCE: usize = 25;
    /// Time between two looks: more than the pause in which workloads look for their word to go on.
    const PAUSE: Duration = Duration::from_millis(8);
    /// What has not changed for so long is at rest: longer than the other end of a connection may wait with its word that
    /// something has arrived (TCP_DELACK_MIN, 40 ms), and than the timers of workloads run.
    const REST: Duration = Duration::from_millis(60);

    /// Looks at a tree until it has not changed for a while; if that does not come, what has changed between the last looks
    /// is known to move by itself.
    pub fn take(members: impl Fn() -> Vec<Pid>) -> Self {
        let begun = Instant::now();
        let mut looks = vec![Fingerprint::take(&members())];
        let mut since = Instant::now();
        let restless;
        loop {
            sleep(Self::PAUSE);
            let next = Fingerprint::take(&members());
            let moved = differences(&looks[looks.len() - 1], &next, &[]);
            looks.push(next);
            if !moved.is_empty() || looks[looks.len() - 1].works() {
                since = Instant::now();
            }
            let rest = since.elapsed() > Self::REST;
            if rest || looks.len() == Self::LOOKS || looks.len() >= 4 && begun.elapsed() > Self::LONG_ENOUGH {
                restless = !rest;
                break;
            }
        }
        let last = looks.pop().unwrap_or_default();
        let mut moving = BTreeSet::new();
        if restless {
            for earlier in &looks[looks.len() / 2..] {
                moving.extend(differences(earlier, &last, &[]).into_iter().map(|difference| difference.field));
            }
        }
        Self { print: last, restless, moving }
    }

    /// What is not as it was. A tree that has just been let go may not have come to rest: a difference counts when it
    /// is there at every one of some looks.
    pub fn compare(&self, members: impl Fn() -> Vec<Pid>, more: &[Rule]) -> Vec<Difference> {
        let mut lasting: Option<Vec<Difference>> = None;
        for _ in 0..Self::PATIENCE {
            let mut found = differences(&self.print, &Fingerprint::take(&members()), more);
            found.retain(|difference| !self.moving.contains(&difference.field));
            found.retain(|difference| !(self.restless && difference.field.name.starts_with("registers.")));
            if let Some(earlier) = &lasting {
                let known: BTreeSet<&Field> = earlier.iter().map(|difference| &difference.field).collect();
                found.retain(|difference| known.contains(&difference.field));
            }
            let done = found.is_empty();
            lasting = Some(found);
            if done {
                break;
            }
            sleep(Self::PAUSE);
        }
        lasting.unwrap_or_default()
    }
}
