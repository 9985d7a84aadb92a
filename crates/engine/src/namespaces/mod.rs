//! Namespaces of the tree that are not those of its surroundings: what is in them is written down and made again with
//! the tree. One room for each kind, and one line in [`KINDS`]; a kind without halves is refused by name.
//!
//! Which namespaces there are, the ids of processes tell (`sharing.rs`): those that the inventory names are the
//! surroundings' ([`Arranged`] says who makes which at a restore, as data).

mod cgroup;
pub mod file;
pub mod inner;
pub mod ipc;
mod mount;
pub mod net;
pub mod pid;
mod pinned;
pub mod time;
pub mod user;
mod uts;

pub use mount::{Built as Mounts, Contents, build as make_mounts, root_of as mount_root};

use crate::cgroups::Restoring;
use crate::files::PagesIds;
use crate::freeze::Process;
use crate::lineage::{Birth, Lineage, Step};
use crate::memory::PageCount;
use crate::{CheckpointOptions, Error, Moment, Object, RestoreOptions, Result};
use cryonaut_image::records::{CoreEntry, TaskKobjIdsEntry};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace;
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Hand};
use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A kind of namespace.
#[derive(Debug)]
pub struct Kind {
    /// The kernel's kind.
    pub kind: Namespace,
    /// As messages call it.
    name: &'static str,
    /// The number in the ids of a process.
    pub id: fn(&TaskKobjIdsEntry) -> Option<u32>,
    /// How it is carried; `None` if it is not.
    halves: Option<Halves>,
}

/// The two halves of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Halves {
    /// Writes down what is in one. The tree is frozen and entered; nothing else has been written but what kinds above
    /// in the table have.
    pub dump: fn(&mut Dumping<'_>, &Own) -> Result<()>,
    /// Fills one that is new. The process that it was made with (`own.pid`, whose hand is given) is in it and has
    /// nothing yet but our own memory and the service descriptor; nobody else has been born of it.
    pub build: fn(&mut Building<'_>, &Own) -> Result<()>,
    /// Whether a new process gets one from clone3(2); else `build` sees to it that the hand is in a new one, which is why
    /// `own` is then told of before.
    pub at_birth: bool,
}

/// All kinds, in the order in which they are written and built.
pub static KINDS: [Kind; 8] = [
    Kind { kind: Namespace::User, name: "user", id: |ids| ids.user_ns_id, halves: Some(user::HALVES) },
    Kind { kind: Namespace::Pid, name: "pid", id: |ids| ids.pid_ns_id, halves: Some(pid::HALVES) },
    Kind { kind: Namespace::Net, name: "network", id: |ids| ids.net_ns_id, halves: Some(net::HALVES) },
    Kind { kind: Namespace::Ipc, name: "ipc", id: |ids| ids.ipc_ns_id, halves: Some(ipc::HALVES) },
    Kind { kind: Namespace::Uts, name: "uts", id: |ids| ids.uts_ns_id, halves: Some(uts::HALVES) },
    Kind { kind: Namespace::Cgroup, name: "cgroup", id: |ids| ids.cgroup_ns_id, halves: Some(cgroup::HALVES) },
    // Last: file systems belong to the other namespaces of who makes them.
    Kind { kind: Namespace::Mnt, name: "mount", id: |ids| ids.mnt_ns_id, halves: Some(mount::HALVES) },
    Kind { kind: Namespace::Time, name: "time", id: |ids| ids.time_ns_id, halves: Some(time::HALVES) },
];

/// A namespace of the tree, held open.
#[derive(Debug)]
pub struct Own {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its number in the image: that of image files such as `utsns-ID.img`.
    pub id: u32,
    /// A process that is in it: at a restore, the first.
    pub pid: i32,
    /// It itself, for [`namespace::within`].
    pub file: OwnedFd,
}

impl Own {
    /// One that is held open; its kind is one of [`KINDS`].
    #[must_use]
    pub fn new(kind: Namespace, id: u32, pid: i32, file: OwnedFd) -> Own {
        let kind = KINDS.iter().find(|known| known.kind == kind).unwrap_or(&KINDS[0]);
        Own { kind, id, pid, file }
    }

    /// For messages.
    #[must_use]
    pub fn object(&self) -> Object {
        Object::Other(format!("the {} namespace of process {}", self.kind.name, self.pid))
    }

    /// The kernel's refusal of something that was tried there.
    pub fn failed(&self, action: impl Into<String>) -> impl FnOnce(Errno) -> Error {
        let (object, action) = (self.object(), action.into());
        move |errno| Error::kernel(object, action, errno)
    }
}

/// Something that is there as long as it is kept.
pub type Kept = Box<dyn std::any::Any + Send + Sync>;

/// All namespaces of the tree; at a restore, those that are there already.
#[derive(Debug, Default)]
pub struct Owned(Vec<Own>, Vec<Kept>);

impl Owned {
    /// Of a frozen tree; `surroundings` are our own. Those without processes get numbers that no other has.
    pub fn find(processes: &[Process], surroundings: &TaskKobjIdsEntry, options: &CheckpointOptions) -> Result<Owned> {
        let mut owned = Owned::default();
        for kind in &KINDS {
            for process in processes {
                let Some(id) = process.ids.as_ref().and_then(kind.id) else { continue };
                if Some(id) == (kind.id)(surroundings) || owned.get(kind.kind, id).is_some() {
                    continue;
                }
                let file = namespace::open(&process.task, kind.kind)?;
                owned.0.push(Own { kind, id, pid: process.pid, file });
            }
        }
        let free = owned.free_number(processes, surroundings);
        pinned::find(&mut owned, processes, free, options)?;
        owned.0.sort_by_key(|own| position(own.kind.kind));
        Ok(owned)
    }

    /// From here on, no object of the tree or of the surroundings has a number yet.
    pub fn free_number(&self, processes: &[Process], surroundings: &TaskKobjIdsEntry) -> u32 {
        let ids = processes.iter().filter_map(|process| process.ids).chain([*surroundings]);
        let known = ids.map(|ids| highest(&ids)).chain(self.iter().map(|own| own.id));
        known.max().unwrap_or(0) + 1
    }

    /// Takes in one that no process was born with.
    pub fn add(&mut self, own: Own) {
        self.0.push(own);
    }

    /// All of them, in the order of [`KINDS`].
    pub fn iter(&self) -> impl Iterator<Item = &Own> {
        self.0.iter()
    }

    /// That of a kind and a number; `None` if it is the surroundings' (or not there yet).
    #[must_use]
    pub fn get(&self, kind: Namespace, id: u32) -> Option<&Own> {
        self.0.iter().find(|own| own.kind.kind == kind && own.id == id)
    }

    /// The one whose file has this inode number.
    pub fn with_inode(&self, kind: Namespace, inode: u64) -> std::result::Result<Option<&Own>, Errno> {
        for own in self.0.iter().filter(|own| own.kind.kind == kind) {
            if namespace::inode(own.file.as_fd())? == inode {
                return Ok(Some(own));
            }
        }
        Ok(None)
    }

    /// That of a process.
    #[must_use]
    pub fn of(&self, ids: &TaskKobjIdsEntry, kind: Namespace) -> Option<&Own> {
        let number = KINDS.iter().find(|known| known.kind == kind)?.id;
        self.get(kind, number(ids)?)
    }

    /// Those of a process of these kinds, to act [within](namespace::within).
    #[must_use]
    pub fn files_of(&self, ids: &TaskKobjIdsEntry, kinds: &[Namespace]) -> Vec<BorrowedFd<'_>> {
        kinds.iter().filter_map(|kind| self.of(ids, *kind)).map(|own| own.file.as_fd()).collect()
    }
}

/// The highest number among the ids of a process's namespaces.
fn highest(ids: &TaskKobjIdsEntry) -> u32 {
    KINDS.iter().filter_map(|kind| (kind.id)(ids)).max().unwrap_or(0)
}

/// Refuses what cannot be carried.
pub fn refuse(pid: i32, ids: &TaskKobjIdsEntry, surroundings: &TaskKobjIdsEntry) -> Result<()> {
    let foreign = |kind: &&Kind| (kind.id)(ids) != (kind.id)(surroundings);
    match KINDS.iter().filter(foreign).find(|kind| kind.halves.is_none()) {
        None => Ok(()),
        Some(kind) => Err(Error::unsupported(
            Object::Process(pid),
            format!("it has a {} namespace of its own", kind.name),
            "start it in that of this program: others cannot be carried yet",
        )),
    }
}

/// What the first half is given.
#[derive(Debug)]
pub struct Dumping<'a> {
    /// Where records go.
    pub images: &'a DumpDir,
    /// What the user asked for.
    pub options: &'a CheckpointOptions,
    /// The frozen tree, entered.
    pub processes: &'a mut [Process],
    /// All namespaces of the tree.
    pub owned: &'a Owned,
    /// The numbers of those of the surroundings.
    pub surroundings: &'a TaskKobjIdsEntry,
    /// The mounts that have been written down, by their ids, with the numbers of their namespaces.
    pub mount_ids: BTreeMap<i32, u32>,
    /// Numbers for files of pages.
    pub pages_ids: PagesIds,
    /// How many pages of shared memory have been written.
    pub shared_pages: PageCount,
    /// What remains to be written of mount namespaces.
    pub contents: Contents,
}

/// Writes down all namespaces of the tree.
pub fn dump(cx: &mut Dumping<'_>) -> Result<()> {
    let owned = cx.owned;
    for own in owned.iter() {
        if let Some(halves) = own.kind.halves {
            (halves.dump)(cx, own)?;
        }
    }
    Ok(())
}

/// A newborn process, and what it is given: so is the second half.
#[derive(Debug)]
pub struct Building<'a> {
    /// The image.
    pub images: &'a ImageDir,
    /// What the user asked for.
    pub options: &'a RestoreOptions,
    /// The process.
    pub hand: &'a mut Hand,
    /// Its record.
    pub core: &'a CoreEntry,
    /// The cgroups of the tree.
    pub cgroups: &'a mut Restoring,
    /// Gives files to it.
    pub service: &'a Service,
    /// Mounts of the tree that are there already.
    pub mounts: &'a mut Mounts,
    /// What has to be there until the tree is complete.
    pub keep: Vec<Kept>,
}

/// Which processes are born with which namespaces, and which enter one that another has been born with: kind, as index
/// into [`KINDS`], and number.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Arranged {
    surroundings: TaskKobjIdsEntry,
    made: BTreeMap<i32, Vec<(usize, u32)>>,
    joined: BTreeMap<i32, Vec<(usize, u32)>>,
    root: i32,
}

impl Arranged {
    /// From the ids of processes; `of` tells those of one that lives, and of the surroundings for 0, `pids` the pid
    /// namespaces of others.
    pub fn arrange(
        lineage: &Lineage,
        of: impl Fn(i32) -> Option<TaskKobjIdsEntry>,
        pids: impl Fn(i32) -> Option<u32>,
    ) -> Arranged {
        let surroundings = of(0).unwrap_or_default();
        let root = lineage.steps.iter().find_map(|step| match step {
            Step::Create(birth) if birth.creator == 0 => Some(birth.pid),
            _ => None,
        });
        let mut arranged = Arranged { surroundings, root: root.unwrap_or_default(), ..Arranged::default() };
        // Who has no ids (a zombie, a helper) stays where it is born, but for its number.
        let mut now: BTreeMap<i32, TaskKobjIdsEntry> = BTreeMap::new();
        let mut there: BTreeSet<(usize, u32)> =
            KINDS.iter().enumerate().filter_map(|(at, kind)| Some((at, (kind.id)(&surroundings)?))).collect();
        for step in &lineage.steps {
            let Step::Create(Birth { pid, creator, .. }) = *step else { continue };
            let from = now.get(&creator).copied().unwrap_or(surroundings);
            let born = || TaskKobjIdsEntry { pid_ns_id: pids(pid).or(from.pid_ns_id), ..from };
            let has = of(pid).unwrap_or_else(born);
            now.insert(pid, has);
            for (at, kind) in KINDS.iter().enumerate() {
                let Some(id) = (kind.id)(&has).filter(|id| Some(*id) != (kind.id)(&from)) else { continue };
                let list = if there.insert((at, id)) { &mut arranged.made } else { &mut arranged.joined };
                list.entry(pid).or_default().push((at, id));
            }
        }
        arranged
    }

    /// The namespaces of this kind that processes are born with.
    pub fn made(&self, kind: Namespace) -> impl Iterator<Item = (i32, u32)> {
        let of_kind = move |&&(at, _): &&(usize, u32)| KINDS[at].kind == kind;
        self.made.iter().flat_map(move |(pid, made)| made.iter().filter(of_kind).map(|(_, id)| (*pid, *id)))
    }

    /// The pid namespace that is there before this process is born into it, which is not its creator's.
    #[must_use]
    pub fn joins_pids(&self, pid: i32) -> Option<u32> {
        let joined = self.joined.get(&pid).into_iter().flatten();
        joined.copied().find(|(at, _)| KINDS[*at].kind == Namespace::Pid).map(|(_, id)| id)
    }

    /// Gives a process, and who is born of it, clocks that go on from where those of the surroundings were.
    pub fn keep_clocks(&mut self, root: i32) {
        let at = position(Namespace::Time);
        let made = self.made.entry(root).or_default();
        if let Some(at) = at.filter(|at| made.iter().all(|(kind, _)| kind != at)) {
            made.push((at, time::SURROUNDINGS));
        }
    }

    /// Whether a process begins a pid namespace.
    #[must_use]
    pub fn has_own_pids(&self, pid: i32) -> bool {
        self.made(Namespace::Pid).any(|(of, _)| of == pid)
    }

    /// What can be known to fail before anything is made.
    pub fn refuse(&self, options: &RestoreOptions) -> Result<()> {
        let of_root = self.made.get(&self.root).into_iter().flatten();
        let of_root: Vec<&str> = of_root.map(|(at, _)| word(KINDS[*at].kind)).collect();
        // That of the surroundings, as a container has it that shares it with a pod that has none of its own, needs no entering.
        let is_known = |(kind, place): &&(String, String)| of_root.contains(&kind.as_str()) || is_ours(kind, place);
        if let Some((kind, place)) = options.join.iter().find(|one| !is_known(one)) {
            return Err(Error::unsupported(
                Object::Process(self.root),
                format!("it is to enter {place}, and had no {kind} namespace other than that of its surroundings"),
                "leave --join-ns out",
            ));
        }
        for (pid, (at, _)) in self.made.iter().flat_map(|(pid, list)| list.iter().map(move |one| (pid, one))) {
            let kind = &KINDS[*at];
            if kind.halves.is_none() {
                return Err(Error::unsupported(
                    Object::Process(*pid),
                    format!("it is to have a {} namespace of its own", kind.name),
                    "such cannot be made yet",
                ));
            }
        }
        Ok(())
    }

    /// The ids of the surroundings.
    #[must_use]
    pub fn surroundings(&self) -> &TaskKobjIdsEntry {
        &self.surroundings
    }

    /// The flags of clone3(2) with which a process is born (linux/sched.h).
    #[must_use]
    pub fn flags(&self, pid: i32) -> u64 {
        let made = self.made.get(&pid).into_iter().flatten().map(|(at, _)| &KINDS[*at]);
        let at_birth = made.filter(|kind| kind.halves.is_some_and(|halves| halves.at_birth));
        at_birth.fold(0, |flags, kind| flags | namespace::flag(kind.kind) as u64)
    }
}

/// What is there when a process has been born: it enters the namespaces that are there already, and fills those that it
/// was born with. When the root has all of them, the caller is told.
pub fn settle_in(cx: &mut Building<'_>, arranged: &Arranged, owned: &mut Owned) -> Result<()> {
    let pid = cx.hand.pid();
    for &(at, id) in arranged.joined.get(&pid).into_iter().flatten() {
        let kind = &KINDS[at];
        // Nobody enters a pid namespace but by birth: see `joins_pids`.
        if kind.halves.is_none() || kind.kind == Namespace::Pid {
            continue;
        }
        if (kind.id)(&arranged.surroundings) == Some(id) {
            let file = namespace::open(&Task::current()?, kind.kind)?;
            join(cx.hand, cx.service, kind.kind, file.as_fd())?;
            continue;
        }
        let own = owned.get(kind.kind, id).ok_or_else(|| {
            Error::bad_image(format!("ids-{pid}.img"), format!("its {} namespace is not there", kind.name))
        })?;
        join(cx.hand, cx.service, kind.kind, own.file.as_fd())?;
    }
    let made = arranged.made.get(&pid).map_or(&[][..], Vec::as_slice);
    // The caller may want to move a device into a network that is still empty.
    let (first, then): (Vec<_>, Vec<_>) = made.iter().partition(|(at, _)| Some(*at) <= position(Namespace::Net));
    make_those(cx, arranged, owned, &first)?;
    if pid == arranged.root {
        cx.options.hook.call(Moment::SetupNamespaces, pid)?;
    }
    make_those(cx, arranged, owned, &then)
}

/// Where a kind is in [`KINDS`].
fn position(kind: Namespace) -> Option<usize> {
    KINDS.iter().position(|known| known.kind == kind)
}

/// Fills those of a newborn process.
fn make_those(cx: &mut Building<'_>, arranged: &Arranged, owned: &mut Owned, made: &[(usize, u32)]) -> Result<()> {
    let pid = cx.hand.pid();
    for &(at, id) in made {
        let kind = &KINDS[at];
        let Some(halves) = kind.halves else { continue };
        let task = Task::open(crate::freeze::pid_of(pid)?)?;
        let mut own = Own { kind, id, pid, file: namespace::open(&task, kind.kind)? };
        // A network is entered by its own half, which has further reasons to.
        let given =
            if pid == arranged.root && kind.kind != Namespace::Net { joined(cx.options, kind.kind)? } else { None };
        if let Some(given) = given {
            join(cx.hand, cx.service, kind.kind, given.as_fd())?;
            owned.0.push(Own { file: given, ..own });
            continue;
        }
        if kind.kind == Namespace::Mnt && cx.mounts.has_to_wait(cx.images, cx.options, (pid, id))? {
            owned.0.push(own);
            continue;
        }
        (halves.build)(cx, &own)?;
        owned.1.append(&mut cx.keep);
        if !halves.at_birth {
            own.file = namespace::open(&task, kind.kind)?;
        }
        owned.0.push(own);
    }
    Ok(())
}

/// How callers call a kind: `net`.
fn word(kind: Namespace) -> &'static str {
    kind.link().trim_start_matches("ns/")
}

/// Where a namespace is that the caller tells by a pid or a path.
fn path_of(kind: &str, place: &str) -> String {
    if place.parse::<u32>().is_ok() { format!("/proc/{place}/ns/{kind}") } else { place.to_owned() }
}

/// Whether such a namespace is the one in which we are.
fn is_ours(kind: &str, place: &str) -> bool {
    let of = |path: String| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let told = of(path_of(kind, place));
    told.is_some() && told == of(format!("/proc/self/ns/{kind}"))
}

/// The namespace that the root is to enter instead of its own (`--join-ns`).
fn joined(options: &RestoreOptions, kind: Namespace) -> Result<Option<OwnedFd>> {
    let Some((_, place)) = options.join.iter().find(|(name, _)| name == word(kind)) else { return Ok(None) };
    let path = path_of(word(kind), place);
    let opened = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    opened.map(Some).map_err(|e| Error::kernel(Object::Path(path), "open it", e))
}

/// The namespace that the caller gives under a key (`--inherit-fd`).
fn inherited(options: &RestoreOptions, key: &str, object: impl Fn() -> Object) -> Result<OwnedFd> {
    let none = || {
        Error::unsupported(
            object(),
            format!("it is the caller's, under the key \"{key}\""),
            "open one and give it with --inherit-fd fd[N]:KEY",
        )
    };
    let (fd, _) = options.inherit_fds.iter().find(|(_, name)| name == key).ok_or_else(none)?;
    let failed = |e| Error::kernel(Object::Other(key.to_owned()), format!("take descriptor {fd} in its place"), e);
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
    rustix::process::pidfd_getfd(&me, *fd, PidfdGetfdFlags::empty()).map_err(failed)
}

/// Has a process enter a namespace that is there.
fn join(hand: &mut Hand, service: &Service, kind: Namespace, file: BorrowedFd<'_>) -> Result<()> {
    let numbers = service.give(hand, &[file])?;
    let mut b = Batch::new();
    for number in numbers {
        b.call(libc::SYS_setns, [number.into(), namespace::flag(kind).into()]);
        b.call(libc::SYS_close, [number.into()]);
    }
    Ok(hand.run(&mut b)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::Kin;

    #[test]
    fn who_makes_a_namespace_and_who_joins_it() {
        let kin = |parent| Kin { parent, group: 1, session: 1 };
        let tree = [(1, Kin { parent: 0, group: 1, session: 1 }), (2, kin(1)), (3, kin(1)), (4, kin(3))].into();
        let lineage = Lineage::arrange(1, &tree).unwrap();
        let uts = |id| Some(TaskKobjIdsEntry { uts_ns_id: Some(id), net_ns_id: Some(3), ..Default::default() });
        // The root is at home, 2 has its own, 3 is there too, 4 back at home.
        let of = |pid| match pid {
            2 | 3 => uts(9),
            _ => uts(4),
        };
        let arranged = Arranged::arrange(&lineage, of, |_| None);
        assert_eq!(arranged.made(Namespace::Uts).collect::<Vec<_>>(), [(2, 9)]);
        assert_eq!(arranged.flags(2), libc::CLONE_NEWUTS as u64);
        assert_eq!(arranged.joined.keys().copied().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(arranged.flags(1), 0);
    }
}
