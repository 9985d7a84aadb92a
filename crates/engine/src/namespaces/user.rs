//! User namespaces (user_namespaces(7)): which ids inside stand for which outside. The maps come back as they were; what
//! the image says of owners and credentials is true again then.
//!
//! We write the maps when a process has been born into a new one, and it becomes root there before anything is made in
//! its name. One whose maps are those of another user namespace of the tree (nested) cannot be written by us: the kernel
//! lets only the parent namespace do that.

use super::{Building, Dumping, Halves, Own};
use crate::freeze::{Process, pid_of};
use crate::users::{self, Maps};
use crate::{Error, Object, Result};
use cryonaut_image::records::{TaskKobjIdsEntry, UidGidExtent, UsernsEntry};
use cryonaut_image::{ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::IdRange;
use cryonaut_puppet::{Arg, Batch};
use rustix::fs::OFlags;

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

fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let Some(process) = cx.processes.iter().find(|process| process.pid == own.pid) else { return Ok(()) };
    let extents = |ranges: Vec<IdRange>| {
        ranges.into_iter().map(|r| UidGidExtent { first: r.inside, lower_first: r.outside, count: r.count }).collect()
    };
    let record = UsernsEntry { uid_map: extents(process.task.uid_map()?), gid_map: extents(process.task.gid_map()?) };
    Ok(cx.images.write_one(ImageKind::Userns, u64::from(own.id), &record)?)
}

fn build(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    let record: UsernsEntry = cx.images.read_one(ImageKind::Userns, u64::from(own.id))?;
    let task = Task::open(pid_of(own.pid)?)?;
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
