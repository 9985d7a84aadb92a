//! What semaphores are to be given back when a process ends (SEM_UNDO, semop(2)), in `cryonaut-semaphores-ID.json`. The
//! kernel adds up what a process has taken with that flag; a process that takes and gives back in turn, with the flag
//! only once, has the same afterwards.
//!
//! It ends with the process, so of sets that are not the tree's own it cannot be carried: these would be given back at the
//! checkpoint.

use crate::freeze::Process;
use crate::namespaces::Own;
use crate::{Error, Object, Result};
use cryonaut_image::records::{IpcSemEntry, TaskKobjIdsEntry};
use cryonaut_image::{DumpDir, ImageDir, ImageKind};
use cryonaut_kernel::sys::semaphore_undo::{Lists, Undo};
use cryonaut_kernel::sys::sysv_queues::{self as queues, Described, Kind};
use cryonaut_puppet::{Batch, Hand};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most that a semaphore can have (SEMVMX, linux/sem.h).
const MOST: i32 = 32767;

/// Calls that one batch is filled with.
const FULL: usize = 200;

/// What one process is to give back to one set.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Debt {
    pid: i32,
    set: i32,
    /// What is added to each semaphore.
    adjustments: Vec<i16>,
}

/// The processes that live and are in an ipc namespace.
fn within(processes: &[Process], id: Option<u32>) -> impl Iterator<Item = &Process> {
    let is_there = move |process: &&Process| process.ids.is_some_and(|ids| ids.ipc_ns_id == id);
    processes.iter().filter(|process| !process.is_zombie()).filter(is_there)
}

/// What processes have to give back to these sets. An error names who cannot get it back.
fn read<'p>(processes: impl Iterator<Item = &'p Process>, sets: &[Described]) -> Result<Vec<Debt>> {
    let known: Vec<(i32, u64)> = sets.iter().map(|set| (set.id, set.size)).collect();
    let lists = match Lists::new() {
        Ok(lists) => lists,
        Err(errno) => {
            tracing::warn!("what semaphores are to be given back (SEM_UNDO) cannot be told, and is lost: {errno}");
            return Ok(Vec::new());
        }
    };
    let mut seen: BTreeMap<u64, i32> = BTreeMap::new();
    let mut all = Vec::new();
    for process in processes {
        let pid = process.pid;
        let failed = |e| Error::kernel(Object::Process(pid), "ask what semaphores it is to give back", e);
        let mut own: Vec<Vec<Undo>> = Vec::new();
        for list in lists.of(process.speaker()).map_err(failed)? {
            let undo = lists.read(list, &known).map_err(failed)?;
            if undo.is_empty() {
                continue;
            }
            if let Some(other) = seen.insert(list, pid) {
                return Err(refused(
                    pid,
                    format!("it shares what semaphores are to be given back with process {other}"),
                ));
            }
            own.push(undo);
        }
        if own.len() > 1 {
            return Err(refused(pid, "its threads have to give back semaphores each by itself".into()));
        }
        all.extend(own.into_iter().flatten().map(|Undo { set, adjustments }| Debt { pid, set, adjustments }));
    }
    Ok(all)
}

fn refused(pid: i32, why: String) -> Error {
    Error::unsupported(Object::Process(pid), format!("{why} (SEM_UNDO), which cannot be carried"), "")
}

/// Refuses what is to be given back to sets that are not the tree's own; `own` are our ids.
pub fn refuse_outside(processes: &[Process], own: &TaskKobjIdsEntry) -> Result<()> {
    let here = || within(processes, own.ipc_ns_id);
    if here().next().is_none() {
        return Ok(());
    }
    let failed = |e| Error::kernel(Object::Other("our ipc namespace".into()), "list its semaphores", e);
    let sets = queues::list(Kind::Semaphores).map_err(failed)?;
    if sets.is_empty() {
        return Ok(());
    }
    match read(here(), &sets)?.first() {
        None => Ok(()),
        Some(debt) => Err(Error::unsupported(
            Object::Process(debt.pid),
            format!("it is to give back semaphores of the set {} (SEM_UNDO), which is not the tree's alone", debt.set),
            "start it in an ipc namespace of its own",
        )),
    }
}

fn name(id: u32) -> String {
    format!("semaphores-{id}")
}

/// Writes down what is to be given back in a namespace of the tree.
pub fn dump(images: &DumpDir, own: &Own, processes: &[Process], sets: &[Described]) -> Result<()> {
    if sets.is_empty() {
        return Ok(());
    }
    let all = read(within(processes, Some(own.id)), sets)?;
    if all.is_empty() { Ok(()) } else { Ok(images.write_json(&name(own.id), &all)?) }
}

/// What processes are to give back, by pid: set, number of the semaphore in it, what is added to it, and what it has.
#[derive(Debug, Default)]
pub struct Debts(BTreeMap<i32, Vec<(i32, u16, i16, u16)>>);

impl Debts {
    /// Those of an image.
    pub fn read(images: &ImageDir) -> Result<Debts> {
        let mut all = Debts::default();
        for id in images.ids(ImageKind::IpcnsSem)?.into_iter().filter_map(|id| u32::try_from(id).ok()) {
            let Some(debts) = images.read_json::<Vec<Debt>>(&name(id))? else { continue };
            let sets = images.read_tailed::<IpcSemEntry>(ImageKind::IpcnsSem, u64::from(id))?;
            for debt in debts {
                let values = sets
                    .iter()
                    .find(|(set, _)| set.desc.id as i32 == debt.set)
                    .map(|(_, bytes)| bytes.as_chunks::<2>().0);
                let values = values.filter(|values| values.len() == debt.adjustments.len());
                let values = values.ok_or_else(|| {
                    Error::bad_image(name(id), format!("there is no such set of semaphores {}", debt.set))
                })?;
                let each = (0u16..).zip(debt.adjustments).zip(values).filter(|((_, adjustment), _)| *adjustment != 0);
                let each = each
                    .map(|((number, adjustment), value)| (debt.set, number, adjustment, u16::from_le_bytes(*value)));
                all.0.entry(debt.pid).or_default().extend(each);
            }
        }
        Ok(all)
    }

    /// Has a process owe what it did. It has its ipc namespace, and nobody else runs there yet.
    pub fn build(&self, hand: &mut Hand) -> Result<()> {
        let mut b = Batch::new();
        for &(set, number, adjustment, value) in self.0.get(&hand.pid()).into_iter().flatten() {
            for (change, flags) in steps(adjustment, value) {
                let mut operation = number.to_le_bytes().to_vec();
                operation.extend(change.to_le_bytes());
                operation.extend((flags | libc::IPC_NOWAIT as i16).to_le_bytes());
                let at = b.bytes(&operation);
                b.call(libc::SYS_semop, [set.into(), at.into(), 1.into()]);
            }
            if b.len() >= FULL {
                hand.run(&mut b)?;
                b = Batch::new();
            }
        }
        Ok(hand.run(&mut b)?)
    }
}

/// The operations by which a process comes to owe `adjustment`, while the semaphore keeps its value: both are possible at
/// once.
fn steps(adjustment: i16, value: u16) -> [(i16, i16); 2] {
    let taking = (adjustment.saturating_neg(), libc::SEM_UNDO as i16);
    let back = (adjustment, 0);
    let after = i32::from(value) - i32::from(adjustment);
    if (0..=MOST).contains(&after) { [taking, back] } else { [back, taking] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semaphore_that_is_too_small_is_given_first() {
        let undo = libc::SEM_UNDO as i16;
        assert_eq!(steps(3, 5), [(-3, undo), (3, 0)]);
        assert_eq!(steps(3, 2), [(3, 0), (-3, undo)]);
        assert_eq!(steps(-3, 0), [(3, undo), (-3, 0)]);
        assert_eq!(steps(-3, 32767), [(-3, 0), (3, undo)]);
    }
}
