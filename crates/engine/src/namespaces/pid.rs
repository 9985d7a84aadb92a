//! Pid namespaces (pid_namespaces(7)): there is nothing in them but the numbers, for which the engine itself moves in
//! ([`inner`](super::inner)).

use super::inner::{INIT, Tree};
use super::{Building, Dumping, Halves, Own};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace;
use rustix::process::PidfdFlags;

pub const HALVES: Halves = Halves { dump, build, at_birth: true };

/// The tree of a root that is in another pid namespace than we.
pub fn elsewhere(pid: i32) -> Result<Option<Tree>> {
    // If there is no such process, that is told when it is to be frozen.
    let Ok(task) = Task::open(pid_of(pid)?) else { return Ok(None) };
    let Some(theirs) = task.namespace(Namespace::Pid)? else { return Ok(None) };
    if Some(theirs) == Task::current()?.namespace(Namespace::Pid)? {
        return Ok(None);
    }
    let pidfd = rustix::process::pidfd_open(pid_of(pid)?, PidfdFlags::empty())
        .map_err(|e| Error::kernel(Object::Process(pid), "watch it", e))?;
    let file = namespace::open(&task, Namespace::Pid)?;
    let status = task.status()?;
    if status.ns_pid.last() != Some(&INIT) {
        return Err(Error::unsupported(
            Object::Process(pid),
            format!("it is in another pid namespace ({theirs}), and not the init of that"),
            "checkpoint that init, and it with that",
        ));
    }
    Ok(Some(Tree { pid, pidfd, namespace: file }))
}

fn dump(_: &mut Dumping<'_>, _: &Own) -> Result<()> {
    Ok(())
}

fn build(_: &mut Building<'_>, _: &Own) -> Result<()> {
    Ok(())
}
