//! What can be seen of a tree from outside and must be the same after somebody has been at it.

use std::collections::BTreeMap;
use std::fs;

use cryonaut_kernel::proc::Task;
use rustix::process::Pid;

use crate::fingerprint::{own_threads, speaker};

/// One picture: for each process, for each thing, what /proc says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture(BTreeMap<i32, BTreeMap<String, String>>);

impl Picture {
    /// Takes a picture of these processes.
    pub(crate) fn of(members: &[Pid]) -> Self {
        let pids = members.iter().map(|pid| pid.as_raw_nonzero().get());
        Self(pids.map(|pid| (pid, process(pid))).collect())
    }

    /// The same without the numbers of inodes and devices, which a restore changes.
    pub(crate) fn without_inodes(mut self) -> Self {
        for things in self.0.values_mut() {
            for (name, text) in things.iter_mut() {
                let kept: fn(&str) -> String = match name.as_str() {
                    "maps" => |line| {
                        let words = line.split_whitespace().enumerate();
                        words.filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, word)| word).collect()
                    },
                    "fd" => |line| line.split('[').next().unwrap_or_default().to_owned(),
                    _ => str::to_owned,
                };
                *text = text.lines().map(kept).collect::<Vec<_>>().join("\n");
            }
        }
        self
    }

    /// Which processes are in it.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.0.keys().copied().collect()
    }

    /// The first thing that differs in `other`.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        if self.pids() != other.pids() {
            return Some(format!("the processes were {:?}, are {:?}", self.pids(), other.pids()));
        }
        for (pid, things) in &self.0 {
            let there = &other.0[pid];
            for name in things.keys().chain(there.keys()) {
                let (before, after) = (things.get(name), there.get(name));
                if before != after {
                    let lines = |text: Option<&String>| text.map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>());
                    let (before, after) = (lines(before).unwrap_or_default(), lines(after).unwrap_or_default());
                    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
                    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
                    return Some(format!("process {pid}, {name}: lost {lost:#?}, new {new:#?}"));
                }
            }
        }
        None
    }
}

/// The lines of /proc/PID/task/TID/status that a visit must not change.
const KEPT: [&str; 8] = ["TracerPid:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigCgt:", "SigIgn:", "Seccomp:", "CapEff:"];

fn process(pid: i32) -> BTreeMap<String, String> {
    let mut things = BTreeMap::new();
    let tid = Pid::from_raw(pid).map_or(pid, |pid| speaker(pid).as_raw_nonzero().get());
    let read = |name: &str| fs::read_to_string(format!("/proc/{tid}/{name}")).unwrap_or_default();
    // One that is stopped goes home, and takes away what was mapped and opened, when it is continued.
    if read("stat").rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
        return things;
    }
    things.insert("maps".to_owned(), read("maps"));
    things.insert("fd".to_owned(), descriptors(tid));
    let task = Pid::from_raw(pid).and_then(|pid| Task::open(pid).ok());
    for tid in task.as_ref().map(own_threads).unwrap_or_default() {
        let tid = tid.as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
        let kept = |line: &&str| KEPT.iter().any(|field| line.starts_with(field));
        things.insert(format!("thread {tid}"), status.lines().filter(kept).collect::<Vec<_>>().join("\n"));
    }
    things
}

fn descriptors(tid: i32) -> String {
    let mut all: Vec<String> = fs::read_dir(format!("/proc/{tid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            format!("{} -> {}", entry.file_name().to_string_lossy(), target.display())
        })
        .collect();
    all.sort_unstable();
    all.join("\n")
}
