//! Namespaces in which no process is, and which are there for one of their files: it is mounted somewhere, which is how
//! `ip netns add` keeps them, or somebody has it open (namespaces(7)).

use super::mount::bound::{self, Bound};
use super::{Building, KINDS, Kind, Own, Owned, join};
use crate::freeze::Process;
use crate::{CheckpointOptions, Error, Object, Result};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace;
use cryonaut_puppet::Batch;
use rustix::fs::{AtFlags, OFlags};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

/// What a link such as `net:[4026531840]` names: the kind of a namespace, and the inode number of its file.
pub fn named(link: &[u8]) -> Option<(&'static Kind, u64)> {
    let text = std::str::from_utf8(link).ok()?;
    let (name, number) = text.split_once(":[")?;
    let number = number.strip_suffix(']')?;
    let kind = match name {
        "net" => Namespace::Net,
        "uts" => Namespace::Uts,
        "ipc" => Namespace::Ipc,
        "pid" => Namespace::Pid,
        "mnt" => Namespace::Mnt,
        "user" => Namespace::User,
        "cgroup" => Namespace::Cgroup,
        "time" => Namespace::Time,
        _ => return None,
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let inode = number.parse().ok().filter(|_| is_number)?;
    KINDS.iter().find(|known| known.kind == kind).map(|kind| (kind, inode))
}

/// Adds the mount namespaces that processes have open, and the network namespaces that mounts of the tree keep; the first
/// gets the number `next`. What else is kept is refused where mounts or files are written down.
///
/// In a tree that has no mounts of its own, descriptors are not looked at for that: it takes a microsecond each.
pub fn find(owned: &mut Owned, processes: &[Process], next: u32, options: &CheckpointOptions) -> Result<()> {
    let is_mount = |own: &&Own| own.kind.kind == Namespace::Mnt;
    if !owned.iter().any(|own| is_mount(&own)) {
        return Ok(());
    }
    let next = add(owned, Namespace::Mnt, held(processes)?, next)?;
    let mut bound = Vec::new();
    for own in owned.iter().filter(is_mount) {
        bound.extend(bound::found(own, options)?.into_iter().map(|one| (own.pid, one)));
    }
    add(owned, Namespace::Net, bound, next).map(drop)
}

/// Adds those of one kind that are not known, nor ours; who has them stands beside. The number that is free then.
fn add(owned: &mut Owned, kind: Namespace, found: Vec<(i32, Bound)>, mut next: u32) -> Result<u32> {
    let ours = Task::current()?.namespace(kind)?;
    let of_kind = found.into_iter().filter(|(_, one)| one.kind.kind == kind && Some(one.inode) != ours);
    for (pid, Bound { inode, file, .. }) in of_kind {
        let Some(file) = file else { continue };
        let own = Own::new(kind, next, pid, file);
        let known = owned.with_inode(kind, inode).map_err(own.failed("compare it with others"))?;
        if known.is_none() {
            owned.add(own);
            next += 1;
        }
    }
    Ok(next)
}

/// The mount namespaces that processes have open, and who has.
fn held(processes: &[Process]) -> Result<Vec<(i32, Bound)>> {
    let own = Task::current()?;
    let device =
        |task: &Task, name: &str| rustix::fs::statat(task.dir(), name, AtFlags::empty()).map(|stat| stat.st_dev);
    let namespaces = device(&own, Namespace::Mnt.link());
    let namespaces = namespaces.map_err(|e| Error::kernel(Object::Path("/proc/self/ns/mnt".into()), "stat it", e))?;
    let (mut tables, mut all) = (BTreeSet::new(), Vec::new());
    for process in processes.iter().filter(|process| !process.is_zombie()) {
        if !process.ids.is_none_or(|ids| tables.insert(ids.files_id)) {
            continue;
        }
        for fd in process.task.fds()? {
            let name = format!("fd/{fd}");
            if device(&process.task, &name) != Ok(namespaces) {
                continue;
            }
            let link = process.task.link(&name)?;
            let Some((kind, inode)) = named(link.as_os_str().as_bytes()) else { continue };
            if kind.kind == Namespace::Mnt {
                let file = process.task.open_file(&name, OFlags::RDONLY)?;
                all.push((process.pid, Bound { kind, inode, file: Some(file) }));
            }
        }
    }
    Ok(all)
}

/// Has who is in the first mount namespace make those without processes, while nobody shares his directories with him, which
/// unshare(2) would end. Their mounts follow when all others are there.
pub fn make(cx: &mut Building<'_>) -> Result<()> {
    let task = Task::open(crate::freeze::pid_of(cx.hand.pid())?)?;
    for number in cx.mounts.without_processes() {
        let before = namespace::open(&task, Namespace::Mnt)?;
        let mut b = Batch::new();
        b.call(libc::SYS_unshare, [libc::CLONE_NEWNS.into()]);
        cx.hand.run(&mut b)?;
        let made = namespace::open(&task, Namespace::Mnt)?;
        join(cx.hand, cx.service, Namespace::Mnt, before.as_fd())?;
        cx.mounts.pinned.push(Own::new(Namespace::Mnt, number, cx.hand.pid(), made));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_the_link() {
        let told = |link: &[u8]| named(link).map(|(kind, inode)| (kind.name, inode));
        assert_eq!(told(b"net:[4026531840]"), Some(("network", 4_026_531_840)));
        assert_eq!(told(b"mnt:[1]"), Some(("mount", 1)));
        assert_eq!((told(b"pipe:[12]"), told(b"net:[x]"), told(b"/net:[1]")), (None, None, None));
    }
}
