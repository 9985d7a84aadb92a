//! Which objects the processes of a held tree have, at a glance where there are many; otherwise each is looked into.

use super::{Held, pid_of};
use crate::Result;
use crate::sharing::{KINDS, Namespaces};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::glance::{Glance, Objects};
use cryonaut_kernel::sys::kcmp;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct KnownObjects {
    /// By the thread that is asked for its process: of all that live, or of none.
    objects: BTreeMap<i32, Objects>,
    /// Those that were looked up for one of the processes that have them.
    namespaces: BTreeMap<[u64; 3], Namespaces>,
}

impl KnownObjects {
    /// Of all that are held, as they were `seen`. Nothing where the kernel has something else by these names than we think.
    pub fn of(held: &[Held], seen: &Glance) -> Result<KnownObjects> {
        let living = || held.iter().filter_map(|process| Some((&process.task, process.threads.first()?.tid)));
        let told = living().map(|(_, tid)| Some((tid, *seen.objects.get(&tid)?)));
        let Some(objects) = told.collect::<Option<BTreeMap<i32, Objects>>>().filter(is_understood) else {
            return Ok(KnownObjects::default());
        };
        let mut namespaces = BTreeMap::new();
        for (task, tid) in living() {
            if let Entry::Vacant(unknown) = namespaces.entry(objects[&tid].namespaces) {
                unknown.insert(Namespaces::read(task)?);
            }
        }
        Ok(KnownObjects { objects, namespaces })
    }

    /// The objects of the process for which this thread speaks, and its namespaces, which are looked up if they are not
    /// known.
    pub fn of_process(&self, task: &Task, tid: i32) -> Result<(Option<Objects>, Namespaces)> {
        let objects = self.objects.get(&tid).copied();
        let known = objects.and_then(|objects| self.namespaces.get(&objects.namespaces).copied());
        Ok((objects, known.map_or_else(|| Namespaces::read(task), Ok)?))
    }
}

/// Whether kcmp(2) says the same of two of them, with themselves and with one another.
fn is_understood(objects: &BTreeMap<i32, Objects>) -> bool {
    let mut some = objects.iter();
    let (Some(one), Some(other)) = (some.next(), some.next_back()) else { return false };
    let same = |(one, of_one): (&i32, &Objects), (other, of_other): (&i32, &Objects)| {
        KINDS.into_iter().zip(of_one.shared.iter().zip(of_other.shared)).all(|(kind, (first, second))| {
            let (Ok(one), Ok(other)) = (pid_of(*one), pid_of(*other)) else { return false };
            kcmp::resource(one, other, kind).is_ok_and(|order| (order == Ordering::Equal) == (*first == second))
        })
    };
    same(one, one) && same(one, other)
}
