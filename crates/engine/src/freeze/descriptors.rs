//! Which open files the processes of a held tree have, at a glance where there are many processes; otherwise the descriptors
//! of each are listed when they are written down.

use super::{Held, pid_of};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::glance::{Descriptor, Glance};
use cryonaut_kernel::sys::kcmp;
use std::collections::BTreeMap;

/// What is known, by the pids of processes.
#[derive(Debug, Default)]
pub(super) struct KnownDescriptors(BTreeMap<i32, Vec<Descriptor>>);

impl KnownDescriptors {
    /// Of all that are held, as they were `seen`. Nothing where the kernel has something else by these names than we think.
    pub fn of(held: &[Held], seen: Glance) -> KnownDescriptors {
        if is_understood(held, &seen.descriptors) {
            KnownDescriptors(seen.descriptors)
        } else {
            KnownDescriptors::default()
        }
    }

    /// Those of a process, ascending.
    pub fn of_process(&self, pid: i32) -> Option<Vec<Descriptor>> {
        self.0.get(&pid).cloned()
    }
}

/// Whether /proc says the same of one of them, and kcmp(2) of the first files of it and another.
fn is_understood(held: &[Held], all: &BTreeMap<i32, Vec<Descriptor>>) -> bool {
    let mut known = held.iter().filter_map(|held| Some((held, all.get(&held.pid)?)));
    let (Some((one, of_one)), Some((other, of_other))) = (known.next(), known.next_back()) else { return false };
    let all_same = |of_other: &[Descriptor], other: &Held| {
        of_one.iter().zip(of_other).all(|(one_file, other_file)| same_as_compared((one, one_file), (other, other_file)))
    };
    is_as_listed(&one.task, of_one) && all_same(of_other, other) && all_same(&of_one[1..], one)
}

fn is_as_listed(task: &Task, told: &[Descriptor]) -> bool {
    let closes = |fd| task.fdinfo(fd).is_ok_and(|info| info.flags & libc::O_CLOEXEC as u32 != 0);
    task.fds().is_ok_and(|fds| fds.into_iter().eq(told.iter().map(|told| told.fd)))
        && told.iter().all(|told| closes(told.fd) == told.closes_on_exec)
}

fn same_as_compared((one, of_one): (&Held, &Descriptor), (other, of_other): (&Held, &Descriptor)) -> bool {
    let (Ok(one), Ok(other)) = (pid_of(one.pid), pid_of(other.pid)) else { return false };
    let compared = kcmp::file(one, of_one.fd, other, of_other.fd);
    compared.is_ok_and(|order| order.is_eq() == (of_one.file == of_other.file))
}
