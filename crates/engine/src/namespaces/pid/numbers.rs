//! The numbers that processes have in pid namespaces below that of the tree: everything else knows them by their number
//! in the tree's. Beside the image, in `cryonaut-pids.json`.

use crate::freeze::{Process, pid_of};
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const NAME: &str = "pids";
/// Namespaces in which nobody lives any more have no number among the ids of processes: they have the highest ones.
const HIGHEST: u32 = u32::MAX;

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Numbers {
    /// By thread, also by the number of a group or session whose leader is no more: the numbers in deeper and deeper
    /// namespaces.
    deeper: BTreeMap<i32, Vec<i32>>,
    /// By process with a deeper namespace, and by such a leader: the number of that.
    #[serde(default)]
    namespaces: BTreeMap<i32, u32>,
    /// By process: the number of the namespace of its children, if that is another than its own; none for one that has
    /// had nobody yet.
    children: BTreeMap<i32, Option<u32>>,
}

impl Numbers {
    /// Of a frozen tree.
    ///
    /// # Errors
    /// If it could not be made again.
    pub fn of_tree(processes: &[Process]) -> Result<Numbers> {
        let mut numbers = Numbers::default();
        let mut known = Known::of(processes);
        for process in processes {
            let deeper = process.status.ns_tgid.get(1..).unwrap_or_default();
            if !deeper.is_empty() {
                numbers.deeper.insert(process.pid, deeper.to_vec());
                numbers.namespaces.insert(process.pid, known.number(&process.task)?);
                for thread in process.threads.iter().filter(|thread| thread.tid != process.pid) {
                    let told = Task::open(pid_of(thread.tid)?)?.status()?.ns_pid;
                    numbers.deeper.insert(thread.tid, told.get(1..).unwrap_or_default().to_vec());
                }
            }
        }
        for process in processes {
            numbers.tell_of_leaders(process, processes);
        }
        for process in processes.iter().filter(|process| !process.is_zombie()) {
            let of_children = process.task.namespace(Namespace::PidForChildren)?;
            if of_children != process.namespaces.pid() {
                let number = of_children.map(|inode| known.0.get(&inode).copied().ok_or(process.pid)).transpose();
                numbers.children.insert(process.pid, number.map_err(children_elsewhere)?);
            }
        }
        processes.iter().try_for_each(|process| numbers.check(process))?;
        Ok(numbers)
    }

    /// Of these processes, with the numbers and the namespace that each has deeper down.
    #[cfg(test)]
    pub fn of_pids(all: impl Iterator<Item = (i32, Vec<i32>, u32)>) -> Numbers {
        let mut numbers = Numbers::default();
        for (pid, deeper, namespace) in all.filter(|(_, deeper, _)| !deeper.is_empty()) {
            numbers.deeper.insert(pid, deeper);
            numbers.namespaces.insert(pid, namespace);
        }
        numbers
    }

    /// Takes note of the leaders of a process's group and session that are no more.
    fn tell_of_leaders(&mut self, process: &Process, processes: &[Process]) {
        let told = [(process.stat.pgrp, &process.status.ns_pgid), (process.stat.session, &process.status.ns_sid)];
        for (leader, told) in told {
            let deeper = told.get(1..).unwrap_or_default();
            // It may have been in a namespace above.
            let there = deeper.iter().take_while(|number| **number != 0).count();
            if there == 0 || processes.iter().any(|process| process.pid == leader) {
                continue;
            }
            let before = self.deeper.entry(leader).or_default();
            if before.len() < there {
                *before = deeper[..there].to_vec();
            }
            if let Some(namespace) = self.namespaces.get(&process.pid).copied().filter(|_| there == deeper.len()) {
                self.namespaces.insert(leader, namespace);
            }
        }
    }

    /// Whether a process sees its group and session by the numbers that are known.
    fn check(&self, process: &Process) -> Result<()> {
        let refused = |what: &str, number: i32| {
            let reason = format!("its {what} {number} is of a pid namespace that is neither its own nor above that");
            Err(Error::unsupported(Object::Process(process.pid), reason, "nothing could make this tree again"))
        };
        let told = [
            ("process group", process.stat.pgrp, &process.status.ns_pgid),
            ("session", process.stat.session, &process.status.ns_sid),
        ];
        for (what, leader, told) in told {
            let known = self.deeper.get(&leader);
            let same = |(at, number): (usize, &i32)| {
                known.and_then(|known| known.get(at)).copied().unwrap_or_default() == *number
            };
            if !told.iter().skip(1).enumerate().all(same) {
                return refused(what, leader);
            }
        }
        // Nothing but SIGKILL ends one when it is made again (signal(7), pid_namespaces(7)).
        let signal = process.stat.exit_code & 0x7f;
        if process.is_zombie() && self.is_init(process.pid) && signal != 0 && signal != libc::SIGKILL {
            let reason = format!("it was the init of a pid namespace, and signal {signal} has ended it");
            return Err(Error::unsupported(Object::Process(process.pid), reason, "let its parent wait for it"));
        }
        Ok(())
    }

    /// Of an image.
    pub fn read(images: &ImageDir) -> Result<Numbers> {
        Ok(images.read_json(NAME)?.unwrap_or_default())
    }

    /// Writes them, if there are any.
    pub fn write(&self, images: &DumpDir) -> Result<()> {
        if self.deeper.is_empty() && self.children.is_empty() {
            return Ok(());
        }
        Ok(images.write_json(NAME, self)?)
    }

    /// Whether there are deeper namespaces.
    #[must_use]
    pub fn are_deep(&self) -> bool {
        !self.deeper.is_empty()
    }

    /// How deep a process is below the tree's namespace.
    #[must_use]
    pub fn depth(&self, pid: i32) -> usize {
        self.deeper.get(&pid).map_or(0, Vec::len)
    }

    /// All numbers of a thread, that of the deepest namespace first: as clone3(2) wants them.
    #[must_use]
    pub fn of(&self, tid: i32) -> Vec<i32> {
        let deeper = self.deeper.get(&tid).into_iter().flatten().rev();
        deeper.copied().chain([tid]).collect()
    }

    /// The same of a helper, which without numbers of its own has the one everywhere.
    #[must_use]
    pub fn of_helper(&self, pid: i32, creator: i32) -> Vec<i32> {
        if self.deeper.contains_key(&pid) { self.of(pid) } else { vec![pid; self.depth(creator) + 1] }
    }

    /// The number of a thread in its own namespace, by which those in there call it.
    #[must_use]
    pub fn innermost(&self, tid: i32) -> i32 {
        self.deeper.get(&tid).and_then(|deeper| deeper.last()).copied().unwrap_or(tid)
    }

    /// The number by which a process knows another, or the leader of a group or session; 0 if it does not.
    #[must_use]
    pub fn seen_from(&self, viewer: i32, target: i32) -> i32 {
        match self.depth(viewer) {
            0 => target,
            depth => self.deeper.get(&target).and_then(|deeper| deeper.get(depth - 1)).copied().unwrap_or(0),
        }
    }

    /// Whether a process is the init of a deeper namespace.
    #[must_use]
    pub fn is_init(&self, pid: i32) -> bool {
        self.depth(pid) > 0 && self.innermost(pid) == super::INIT
    }

    /// The number of the namespace of a process that is in a deeper one, or of a leader that is no more.
    #[must_use]
    pub fn namespace(&self, pid: i32) -> Option<u32> {
        self.namespaces.get(&pid).copied()
    }

    /// Whether a number is that of anybody, in any namespace.
    #[must_use]
    pub fn is_taken(&self, number: i32) -> bool {
        self.deeper.iter().any(|(pid, deeper)| *pid == number || deeper.contains(&number))
    }

    /// Processes whose children are in another namespace, with its number, if somebody has been in it.
    pub fn children(&self) -> impl Iterator<Item = (i32, Option<u32>)> {
        self.children.iter().map(|(pid, id)| (*pid, *id))
    }
}

/// In which order ends are to be waited for: the init of a pid namespace has not ended before all others of that are
/// waited for (zap_pid_ns_processes, kernel/pid_namespace.c). What `depth` tells of a process is how deep that is of which
/// it is the init. Those that are no init come first, then the others, the deepest first.
#[must_use]
pub fn by_end(pids: impl Iterator<Item = i32>, depth: impl Fn(i32) -> Option<usize>) -> (Vec<i32>, Vec<i32>) {
    let (mut inits, others): (Vec<i32>, Vec<i32>) = pids.partition(|pid| depth(*pid).is_some());
    inits.sort_by_key(|pid| std::cmp::Reverse(depth(*pid)));
    (others, inits)
}

/// Numbers of namespaces, by inode.
struct Known(BTreeMap<u64, u32>);

impl Known {
    fn of(processes: &[Process]) -> Known {
        let one = |process: &Process| Some((process.namespaces.pid()?, process.ids?.pid_ns_id?));
        Known(processes.iter().filter_map(one).collect())
    }

    /// That of a process, which may have ended.
    fn number(&mut self, task: &Task) -> Result<u32> {
        let Some(inode) = task.namespace(Namespace::Pid)? else { return Ok(0) };
        let next = HIGHEST - self.0.len() as u32;
        Ok(*self.0.entry(inode).or_insert(next))
    }
}

fn children_elsewhere(pid: i32) -> Error {
    Error::unsupported(
        Object::Process(pid),
        "its children are to be in a pid namespace that nobody of the tree is in",
        "let it create a child there first",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        let deeper = [(20, vec![1]), (21, vec![7]), (30, vec![8, 1])].into();
        Numbers { deeper, ..Numbers::default() }
    }

    #[test]
    fn a_process_is_known_by_the_number_that_it_has_where_it_is_looked_at_from() {
        let numbers = numbers();
        assert_eq!(numbers.of(30), [1, 8, 30]);
        assert_eq!([10, 20, 30].map(|viewer| numbers.seen_from(viewer, 30)), [30, 8, 1]);
        assert_eq!([10, 20, 30].map(|viewer| numbers.seen_from(viewer, 21)), [21, 7, 0]);
        assert_eq!(numbers.seen_from(20, 10), 0);
        assert_eq!(numbers.of_helper(99, 30), [99; 3]);
        assert_eq!([10, 20, 21, 30].map(|pid| numbers.is_init(pid)), [false, true, false, true]);
    }

    #[test]
    fn inits_are_waited_for_when_all_others_have_ended() {
        let numbers = numbers();
        let depth = |pid| numbers.is_init(pid).then(|| numbers.depth(pid));
        assert_eq!(by_end([10, 20, 21, 30].into_iter(), depth), (vec![10, 21], vec![30, 20]));
    }
}
