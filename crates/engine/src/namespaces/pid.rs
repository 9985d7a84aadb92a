//! Pid namespaces (pid_namespaces(7)): there is nothing in them but the numbers, for which the engine itself moves in
//! ([`inner`](super::inner)).
//!
//! A tree whose root is not the init of its pid namespace (a container in a pod) is carried if the caller names that
//! namespace (`--external pid[INODE]:KEY`): it comes back in the one that the caller gives under the key.
//!
//! Processes in deeper ones have a number in the tree's as well, by which everything here knows them. Those that they
//! have deeper down ([`Numbers`]) are asked for at their birth; so is it in which namespace the children of a process
//! are, if not in its own (unshare(2)): whoever is to create somebody there enters it before.

mod numbers;

pub use numbers::{Numbers, by_end};

use super::inner::{self, INIT, Tree};
use super::{Building, Dumping, Halves, Own};
use crate::freeze::pid_of;
use crate::{Error, Object, RestoreOptions, Result};
use cryonaut_image::records::PidnsEntry;
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Hand};
use rustix::process::PidfdFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub const HALVES: Halves = Halves { dump, build, at_birth: true };

/// The tree of a root that is in another pid namespace than we.
pub fn elsewhere(pid: i32, external: &[String]) -> Result<Option<Tree>> {
    // If there is no such process, that is told when it is to be frozen.
    let Ok(task) = Task::open(pid_of(pid)?) else { return Ok(None) };
    let Some(theirs) = task.namespace(Namespace::Pid)? else { return Ok(None) };
    if Some(theirs) == Task::current()?.namespace(Namespace::Pid)? {
        return Ok(None);
    }
    let pidfd = rustix::process::pidfd_open(pid_of(pid)?, PidfdFlags::empty())
        .map_err(|e| Error::kernel(Object::Process(pid), "watch it", e))?;
    let file = namespace::open(&task, Namespace::Pid)?;
    let inside = task.status()?.ns_pid.last().copied().unwrap_or(INIT);
    if inside != INIT && key(external, theirs).is_none() {
        return Err(Error::unsupported(
            Object::Process(pid),
            format!("it is in another pid namespace ({theirs}), and not the init of that"),
            "checkpoint that init, and it with that; or name the namespace with --external pid[INODE]:KEY",
        ));
    }
    Ok(Some(Tree { pid, inside, pidfd, namespace: file }))
}

/// The key under which the caller will give a pid namespace, `pid[INODE]:KEY`.
fn key(external: &[String], inode: u64) -> Option<&str> {
    let name = format!("pid[{inode}]:");
    external.iter().find_map(|one| one.strip_prefix(name.as_str())).filter(|key| !key.is_empty())
}

/// The pid namespace of the caller's into which the root is to be born.
pub fn given(images: &ImageDir, options: &RestoreOptions, id: u32) -> Result<Option<OwnedFd>> {
    let record: Option<PidnsEntry> = images.read_optional(ImageKind::Pidns, u64::from(id))?;
    let key = record.and_then(|record| record.ext_key);
    key.map(|key| super::inherited(options, &key, || Object::Other(format!("pid namespace {id}")))).transpose()
}

/// The numbers that processes of a pid namespace have in it.
pub fn numbers_in(namespace: BorrowedFd<'_>) -> Result<Vec<i32>> {
    let wanted = namespace::inode(namespace)
        .map_err(|e| Error::kernel(Object::Other("pid namespace".into()), "identify it", e))?;
    // Who ends meanwhile has no number any more.
    let number = |task: Task| {
        let is_there = task.namespace(Namespace::Pid).ok().flatten() == Some(wanted);
        is_there.then(|| task.status().ok()?.ns_pid.last().copied()).flatten()
    };
    let all = std::fs::read_dir("/proc")
        .map_err(|e| Error::kernel(Object::Path("/proc".into()), "list it", crate::error::errno_of(&e)))?;
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| Task::open(pid_of(pid).ok()?).ok()).filter_map(number).collect())
}

/// Once for all of them.
fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let is_pid = |own: &&Own| own.kind.kind == Namespace::Pid;
    if cx.owned.iter().find(is_pid).is_some_and(|first| first.id != own.id) {
        return Ok(());
    }
    let root = cx.processes.first().map_or(INIT, |root| root.pid);
    let of_root = cx.processes.first().and_then(|root| root.ids).and_then(|ids| ids.pid_ns_id);
    if inner::outer().is_some() && root != INIT && Some(own.id) == of_root {
        let inode = namespace::inode(own.file.as_fd()).map_err(own.failed("identify it"))?;
        let record = PidnsEntry { ext_key: key(&cx.options.external, inode).map(str::to_owned) };
        cx.images.write_one(ImageKind::Pidns, u64::from(own.id), &record)?;
    }
    Ok(())
}

/// From now on, children of a process are born into this pid namespace.
pub fn enter_for_children(hand: &mut Hand, service: &Service, namespace: BorrowedFd<'_>) -> Result<()> {
    super::join(hand, service, Namespace::Pid, namespace)
}

/// The same into a new one, in which its first child is to be the init.
pub fn renew_for_children(hand: &mut Hand) -> Result<()> {
    let mut b = Batch::new();
    b.call(libc::SYS_unshare, [libc::CLONE_NEWPID.into()]);
    Ok(hand.run(&mut b)?)
}

/// The pid namespace that a process is in.
pub fn of_process(pid: i32) -> Result<OwnedFd> {
    Ok(namespace::open(&Task::open(pid_of(pid)?)?, Namespace::Pid)?)
}

fn build(_: &mut Building<'_>, _: &Own) -> Result<()> {
    Ok(())
}
