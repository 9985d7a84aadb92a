//! Which processes are worth to be copied while they run, and which of them are bound up with others.

use crate::Result;
use crate::freeze::{Process, pid_of};
use crate::memory;
use crate::sharing::Sharing;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::stat::State;
use cryonaut_kernel::proc::status::Status;
use std::collections::{BTreeMap, BTreeSet};

/// KiB of memory of its own from which on a process is worth the trouble.
pub const WORTH_KIB: u64 = 8 << 10;

/// Whether a tree has enough memory of its own for its freeze to become shorter by this.
pub fn is_worth_it(root: i32) -> bool {
    any_is(root, |status| status.rss_anon_kib.max(status.rss_shmem_kib) >= WORTH_KIB)
}

/// Whether a process of a tree is as `is_large` says.
pub fn any_is(root: i32, is_large: impl Fn(&Status) -> bool) -> bool {
    let mut pids = vec![root];
    while let Some(pid) = pids.pop() {
        let Some(task) = pid_of(pid).ok().and_then(|pid| Task::open(pid).ok()) else { continue };
        if task.status().is_ok_and(|status| is_large(&status)) {
            return true;
        }
        pids.extend(task.all_children().into_iter().map(|child| child.as_raw_nonzero().get()));
    }
    false
}

/// Those of the processes, which stand still, that share all of their memory with another.
pub fn share_memory<'a>(processes: impl Iterator<Item = &'a Process>) -> Result<BTreeSet<i32>> {
    let (mut sharing, mut spaces) = (Sharing::default(), BTreeMap::<u32, Vec<i32>>::new());
    for process in processes {
        spaces.entry(sharing.space_of(process)?).or_default().push(process.pid);
    }
    Ok(spaces.into_values().filter(|pids| pids.len() > 1).flatten().collect())
}

/// Those of the processes that have pages in common with others and run on; who has ended meanwhile has none.
pub fn in_common(mut processes: Vec<&Process>) -> Result<Vec<i32>> {
    let is_there = |p: &&Process| p.task.stat().is_ok_and(|stat| !matches!(stat.state, State::Zombie | State::Dead));
    ask_of_living(&mut processes, is_there, memory::have_in_common)
}

/// Asks about some that run, all at once. If that fails, who has ended meanwhile is taken out, and it is asked again.
///
/// # Errors
/// If it fails though all are there.
pub fn ask_of_living<T, R>(
    some: &mut Vec<T>,
    is_there: impl Fn(&T) -> bool,
    ask: impl Fn(&[T]) -> Result<R>,
) -> Result<R> {
    loop {
        let answer = ask(some);
        let before = some.len();
        if answer.is_err() {
            some.retain(&is_there);
        }
        if some.len() == before {
            return answer;
        }
    }
}
