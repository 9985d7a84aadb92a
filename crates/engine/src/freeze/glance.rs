//! What all processes of a tree have, at one glance where there are many; otherwise each is looked into.

use super::Held;
use crate::parallel;
use cryonaut_kernel::sys::glance::{self, Glance};

/// Processes from which on a glance at all is worth it.
pub const MANY_PROCESSES: usize = 8;

/// Has another thread get ready what it needs, if it will be worth it. For who is not frozen yet.
pub(super) fn prepare(children: usize) {
    if children >= MANY_PROCESSES {
        parallel::aside(glance::prepare);
    }
}

/// What was seen last, and when: how many processes were held then.
#[derive(Debug, Default)]
pub(super) struct Seen(Option<(usize, Glance)>);

impl Seen {
    /// Looks at those that are held, `held` in all, for `asked` of them. `None` for few, and where the kernel does not let us.
    pub fn look(&mut self, held: usize, asked: usize) -> Option<&Glance> {
        if asked < MANY_PROCESSES {
            return None;
        }
        if self.0.as_ref().is_none_or(|(before, _)| *before != held) {
            let seen =
                glance::of_traced(held).inspect_err(|e| tracing::debug!("processes are looked at one by one: {e}"));
            self.0 = seen.ok().map(|seen| (held, seen));
        }
        self.0.as_ref().map(|(_, seen)| seen)
    }

    /// The same at the end, when all are held.
    pub fn last(mut self, held: usize) -> Option<Glance> {
        self.look(held, held)?;
        self.0.map(|(_, seen)| seen)
    }
}

/// Whether a process has no children, as far as is seen: /proc is asked of one of so many whether it says the same.
pub(super) fn are_childless(seen: &Glance, asked: &[&Held]) -> Vec<bool> {
    let is_childless = |held: &&Held| {
        let one = held.threads.len() == 1 && held.threads[0].tid == held.pid;
        one && seen.objects.get(&held.pid).is_some_and(|objects| !objects.has_children)
    };
    let told: Vec<bool> = asked.iter().map(is_childless).collect();
    let one = asked.iter().zip(&told).find(|(_, childless)| **childless).map(|(held, _)| held);
    let is_so = one.is_some_and(|held| {
        super::pid_of(held.pid).is_ok_and(|pid| held.task.children(pid).is_ok_and(|all| all.is_empty()))
    });
    if is_so { told } else { vec![false; asked.len()] }
}
