//! What semaphores of System V are to be given back when a process ends (SEM_UNDO, semop(2)). No call tells it; it is read
//! from the kernel's own structures, whose layout it describes itself.

use super::bpf_iter::{self, Base, Field, Program};
use super::unix_memory::Reader;
use crate::proc::Task;
use rustix::io::Errno;
use rustix::process::Pid;

/// What threads have to give back to one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undo {
    /// The set's id.
    pub set: i32,
    /// What is added to each of its semaphores.
    pub adjustments: Vec<i16>,
}

/// Finds the lists of threads, and reads them. ENOENT or ENOTSUP where the kernel does not describe its types, or has
/// others; EPERM without the right to look.
pub struct Lists {
    reader: Reader,
    /// Where a thread has its list.
    list: Field,
    program: Program,
}

impl std::fmt::Debug for Lists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lists").finish_non_exhaustive()
    }
}

impl Lists {
    /// Loads the program that looks.
    pub fn new() -> Result<Lists, Errno> {
        let reader = Reader::new()?;
        let list = reader.inner(("task_struct", "sysvsem", "sysv_sem", "undo_list"), 8)?;
        Ok(Lists { program: Program::for_threads(reader.btf, &[list])?, list, reader })
    }

    /// The lists that the threads of a process have, by their addresses in the kernel. Threads, and processes, may have the
    /// same.
    pub fn of(&self, pid: i32) -> Result<Vec<u64>, Errno> {
        let mut all: Vec<u64> = match self.program.of_threads(pid) {
            Err(Errno::NOTSUP) => self.of_each_thread(pid)?,
            told => told?.iter().filter_map(|thread| thread.first().copied()).collect(),
        };
        all.sort_unstable();
        all.dedup();
        all.retain(|list| *list != 0);
        Ok(all)
    }

    /// The same where we are in a pid namespace: by the numbers of the threads there.
    fn of_each_thread(&self, pid: i32) -> Result<Vec<u64>, Errno> {
        let failed = |e: crate::proc::Error| e.errno().unwrap_or(Errno::SRCH);
        let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let threads = Task::open(pid).and_then(|task| task.tids()).map_err(failed)?;
        let list_of = |tid: Pid| {
            let told = bpf_iter::task_fields(self.reader.btf, tid.as_raw_nonzero().get(), Base::Task, &[self.list])?;
            Ok(told.last().copied().unwrap_or_default())
        };
        threads.into_iter().map(list_of).collect()
    }

    /// What is on a list, for sets of one ipc namespace: their ids, and how many semaphores they have.
    pub fn read(&self, list: u64, sets: &[(i32, u64)]) -> Result<Vec<Undo>, Errno> {
        let reader = &self.reader;
        let link = reader.field("sem_undo", "list_proc", 8)?;
        let (set, adjustments) = (reader.field("sem_undo", "semid", 4)?, reader.field("sem_undo", "semadj", 8)?);
        let head = list + u64::from(reader.field("sem_undo_list", "list_proc", 8)?.offset);
        let first = reader.values(head, &[Field { offset: 0, len: 8 }])?[0];
        let len = [link, set, adjustments].iter().map(|field| field.offset as usize + 8).max().unwrap_or_default();
        let mut all = Vec::new();
        for block in bpf_iter::blocks(reader.btf, reader.own, (first, head), link.offset, len)? {
            let value = |field| block.value(field).ok_or(Errno::NOTSUP);
            let id = value(set)? as i32;
            // They stand at the structure's end, before Linux 5.17 elsewhere in the same piece of memory.
            let at = match reader.btf.is_pointer("sem_undo", "semadj") {
                true => value(adjustments)?,
                false => block.address + u64::from(adjustments.offset),
            };
            // A set that has been removed has -1 here.
            let Some((_, count)) = sets.iter().find(|(known, _)| *known == id) else { continue };
            let bytes = reader.bytes(at, 2 * *count as usize)?;
            let adjustments: Vec<i16> = bytes.as_chunks::<2>().0.iter().map(|two| i16::from_le_bytes(*two)).collect();
            if adjustments.iter().any(|adjustment| *adjustment != 0) {
                all.push(Undo { set: id, adjustments });
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_nothing_to_give_back_has_nothing_on_a_list() {
        let Ok(lists) = Lists::new() else { return };
        let own = std::process::id() as i32;
        let each = lists.of_each_thread(own).unwrap();
        assert!(each.iter().filter(|list| **list != 0).all(|list| lists.of(own).unwrap().contains(list)));
        for list in lists.of(own).unwrap() {
            assert_eq!(lists.read(list, &[]), Ok(Vec::new()));
        }
    }
}
