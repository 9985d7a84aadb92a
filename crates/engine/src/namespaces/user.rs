//! User namespaces (user_namespaces(7)): which ids inside stand for which outside. The maps come back as they were; what
//! the image says of owners and credentials is true again then.
//!
//! We write the maps when a process has been born into a new one, and it becomes root there before anything is made in
//! its name. Where setgroups(2) is forbidden, or a process is in groups that have no number there, it has its groups from
//! before it came in; they stand in `cryonaut-user-ID.json`.
//! One whose maps are those of another user namespace of the tree (nested) cannot be written by us: the kernel
//! lets only the parent namespace do that.

use super::{Arranged, Building, Dumping, Halves, Own};
use crate::freeze::{Process, pid_of};
use crate::users::{self, Maps};
use crate::{Error, Object, Result};
use cryonaut_image::records::{CredsEntry, TaskKobjIdsEntry, UidGidExtent, UsernsEntry};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::{IdRange, Namespace};
use cryonaut_kernel::sys::creds;
use cryonaut_puppet::{Arg, Batch, Hand};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const HALVES: Halves = Halves { dump, build, at_birth: true };

/// Takes note of the users of a frozen tree; its root tells them.
pub fn take_note(processes: &[Process], surroundings: &TaskKobjIdsEntry) -> Result<()> {
    let root = processes.first().filter(|root| !root.is_zombie());
    let has_own = root.and_then(|root| root.ids).is_some_and(|ids| ids.user_ns_id != surroundings.user_ns_id);
    let maps = match root.filter(|_| has_own) {
        Some(root) => Some(Maps { users: root.task.uid_map()?, groups: root.task.gid_map()? }),
        None => None,
    };
    users::set(maps);
    Ok(())
}

/// The same of an image, from the ids of its root.
pub fn take_note_of(images: &ImageDir, root: Option<&TaskKobjIdsEntry>, surroundings: &TaskKobjIdsEntry) -> Result<()> {
    let id = root.and_then(|ids| ids.user_ns_id).filter(|id| Some(*id) != surroundings.user_ns_id);
    let record: Option<UsernsEntry> = match id {
        Some(id) => Some(images.read_one(ImageKind::Userns, u64::from(id))?),
        None => None,
    };
    let ranges = |extents: &[UidGidExtent]| {
        let range = |e: &UidGidExtent| IdRange { inside: e.first, outside: e.lower_first, count: e.count };
        extents.iter().map(range).collect()
    };
    users::set(record.map(|record| Maps { users: ranges(&record.uid_map), groups: ranges(&record.gid_map) }));
    Ok(())
}

fn name(id: u32) -> String {
    format!("user-{id}")
}

/// Groups that cannot be set in a user namespace: those of who came in with them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inborn {
    /// setgroups(2) is forbidden there.
    forbidden: bool,
    /// As they are outside.
    groups: Vec<u32>,
}

impl Inborn {
    /// Of the namespace of a process, if there are such.
    fn of(process: &Process, own: &Own, all: &[Process]) -> Result<Option<Inborn>> {
        let forbidden = !process.task.may_set_groups()?;
        let map = process.task.gid_map()?;
        let has_number =
            |group: &u32| map.iter().any(|range| group.checked_sub(range.outside).is_some_and(|at| at < range.count));
        let groups = process.task.status()?.groups;
        if !forbidden && groups.iter().all(has_number) {
            return Ok(None);
        }
        for other in all.iter().filter(|p| !p.is_zombie() && p.ids.and_then(|ids| ids.user_ns_id) == Some(own.id)) {
            let has = other.task.status()?.groups;
            if has != groups && (forbidden || !has.iter().all(has_number)) {
                return Err(Error::unsupported(
                    Object::Process(other.pid),
                    format!(
                        "it is in other groups than process {}, and they cannot be set in their user namespace",
                        process.pid
                    ),
                    "",
                ));
            }
        }
        Ok(Some(Inborn { forbidden, groups }))
    }
}

/// All of an image, by the ids of user namespaces.
#[derive(Debug, Default)]
pub struct Born(BTreeMap<u32, Inborn>);

impl Born {
    /// Reads them.
    pub fn read(images: &ImageDir) -> Result<Born> {
        let mut all = BTreeMap::new();
        for id in images.ids(ImageKind::Userns)?.into_iter().filter_map(|id| id.try_into().ok()) {
            all.extend(images.read_json(&name(id))?.map(|one| (id, one)));
        }
        Ok(Born(all))
    }

    /// Whether a process is in the groups of its record from birth.
    pub fn has_groups(&self, ids: Option<&TaskKobjIdsEntry>, creds: &CredsEntry) -> bool {
        let inborn = ids.and_then(|ids| ids.user_ns_id).and_then(|id| self.0.get(&id));
        inborn.is_some_and(|inborn| inborn.forbidden || creds.groups.contains(&users::NOBODY))
    }

    fn of_newborn(&self, arranged: &Arranged, pid: i32) -> Option<&Inborn> {
        let id = arranged.made(Namespace::User).find(|(of, _)| *of == pid).map(|(_, id)| id);
        id.and_then(|id| self.0.get(&id))
    }

    /// Has a child of ours be born with its groups.
    pub fn with_groups<T>(
        &self,
        arranged: &Arranged,
        pid: i32,
        birth: impl FnOnce() -> cryonaut_puppet::Result<T>,
    ) -> Result<T> {
        let Some(inborn) = self.of_newborn(arranged, pid) else { return Ok(birth()?) };
        let failed = |e| Error::kernel(Object::Process(pid), "have it be born with its groups", e);
        Ok(creds::with_groups(&inborn.groups, || Ok(birth())).map_err(failed)??)
    }

    /// The same of a process of the tree, which is given its own groups later.
    pub fn take_groups(&self, arranged: &Arranged, pid: i32, creator: &mut Hand) -> Result<()> {
        let Some(inborn) = self.of_newborn(arranged, pid) else { return Ok(()) };
        let mut b = Batch::new();
        let list = b.bytes(&inborn.groups.iter().flat_map(|group| group.to_le_bytes()).collect::<Vec<_>>());
        b.call(libc::SYS_setgroups, [inborn.groups.len().into(), list.into()]);
        Ok(creator.run(&mut b)?)
    }
}

fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let Some(process) = cx.processes.iter().find(|process| process.pid == own.pid) else { return Ok(()) };
    let extents = |ranges: Vec<IdRange>| {
        ranges.into_iter().map(|r| UidGidExtent { first: r.inside, lower_first: r.outside, count: r.count }).collect()
    };
    if let Some(born) = Inborn::of(process, own, cx.processes)? {
        cx.images.write_json(&name(own.id), &born)?;
    }
    let record = UsernsEntry { uid_map: extents(process.task.uid_map()?), gid_map: extents(process.task.gid_map()?) };
    Ok(cx.images.write_one(ImageKind::Userns, u64::from(own.id), &record)?)
}

fn build(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    let record: UsernsEntry = cx.images.read_one(ImageKind::Userns, u64::from(own.id))?;
    let task = Task::open(pid_of(own.pid)?)?;
    if cx.images.read_json::<Inborn>(&name(own.id))?.is_some_and(|born| born.forbidden) {
        // Only before there are any.
        let file = task.open_file("setgroups", OFlags::WRONLY)?;
        rustix::io::write(&file, b"deny").map_err(own.failed("forbid setgroups there"))?;
    }
    for (name, map) in [("uid_map", &record.uid_map), ("gid_map", &record.gid_map)] {
        // One that was never written is told as empty.
        if map.is_empty() {
            continue;
        }
        let line = |e: &UidGidExtent| format!("{} {} {}\n", e.first, e.lower_first, e.count);
        let text: String = map.iter().map(line).collect();
        let file = task.open_file(name, OFlags::WRONLY)?;
        rustix::io::write(&file, text.as_bytes()).map_err(|errno| Error::Kernel {
            object: Object::Process(own.pid),
            action: format!("give its user namespace the {name} {}", text.trim_end().replace('\n', ", ")),
            errno,
            remedy: "this needs CAP_SETUID and CAP_SETGID, and a user namespace that is not within another of the tree",
        })?;
    }
    let has_root = |map: &[UidGidExtent]| map.iter().any(|extent| extent.first == 0 && extent.count > 0);
    let mut b = Batch::new();
    let root = [Arg::Val(0), Arg::Val(0), Arg::Val(0)];
    if has_root(&record.gid_map) {
        b.call(libc::SYS_setresgid, root);
    }
    if has_root(&record.uid_map) {
        b.call(libc::SYS_setresuid, root);
    }
    Ok(cx.hand.run(&mut b)?)
}
