//! Mounts of namespaces: the file of a namespace is mounted somewhere, which gives it a name and keeps it there, as
//! `ip netns add` does. The image has them as mounts of type `nsfs`, and beside them which namespaces they show.
//!
//! At a restore they come last ([`super::Built::attach_namespaces`]), when all namespaces are there: of some the processes
//! are born after who has the mount, and those without processes are made when everybody is born.

use super::external::Externals;
use super::filesystem::Making;
use super::plan::type_of;
use super::{mounts_here, paths, table};
use crate::namespaces::pinned::named;
use crate::namespaces::{KINDS, Kind, Own, Owned};
use crate::{CheckpointOptions, Error, Result};
use cryonaut_image::records::{MntEntry, TaskKobjIdsEntry};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace::{self, within};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// A namespace that is mounted.
#[derive(Debug)]
pub struct Bound {
    /// Its kind.
    pub kind: &'static Kind,
    /// The inode number of its file.
    pub inode: u64,
    /// Its file, if no other mount hides it.
    pub file: Option<OwnedFd>,
}

/// All that are mounted in a mount namespace, but for what the caller says is from outside or is to be left out.
pub fn found(own: &Own, options: &CheckpointOptions) -> Result<Vec<Bound>> {
    let externals = Externals::of(&options.external);
    let me = Task::current()?;
    let found = within(&[own.file.as_fd()], || -> std::result::Result<_, Errno> {
        let mut mounts = mounts_here(me.dir().as_fd())?;
        table::leave_out(&mut mounts, &options.skip_mounts);
        let is_ours = |mount: &MountInfo| externals.value(paths::of(&mount.mount_point)).is_none();
        let bound = |mount: &MountInfo| {
            let (kind, inode) = named(paths::of(&mount.root)).filter(|_| mount.fs_type == b"nsfs")?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(&mount.mount_point, flags, Mode::empty()).ok();
            let file = file.filter(|file| namespace::inode(file.as_fd()) == Ok(inode));
            Some(Bound { kind, inode, file })
        };
        Ok(mounts.iter().filter(|mount| is_ours(mount)).filter_map(bound).collect())
    });
    found.and_then(|found| found).map_err(own.failed("look for mounts of namespaces"))
}

/// What mounts of namespaces show, by their ids: the kind, as clone(2) has it, and the number.
///
/// # Errors
/// If that is a namespace which is neither the tree's nor ours; or one of mounts: the kernel has such mounted only in older
/// ones (mnt_ns_loop, fs/namespace.c), by numbers that Linux 6.18 gives to each processor in advance, so that who is older
/// is a matter of chance.
pub fn numbers(
    entries: &[MntEntry],
    owned: &Owned,
    surroundings: &TaskKobjIdsEntry,
) -> Result<BTreeMap<u32, (u32, u32)>> {
    let mut numbers = BTreeMap::new();
    let is_one = |entry: &&MntEntry| type_of(entry).is_some_and(|fs| fs.making == Making::Namespace);
    for entry in entries.iter().filter(is_one).filter(|entry| entry.ext_key.is_none()) {
        let refused = |reason| {
            let remedy = "unmount it before the checkpoint, or leave it out with --skip-mnt MOUNTPOINT";
            Error::unsupported(table::object(entry), reason, remedy)
        };
        let (kind, inode) =
            named(&entry.root).ok_or_else(|| refused("it shows a namespace of an unknown kind".to_owned()))?;
        let failed = |e| Error::kernel(table::object(entry), "compare it with the namespaces of the tree", e);
        let number = match owned.with_inode(kind.kind, inode).map_err(failed)? {
            Some(own) => Some(own.id),
            None if Task::current()?.namespace(kind.kind)? == Some(inode) => (kind.id)(surroundings),
            None => None,
        };
        let number = number.ok_or_else(|| {
            refused(format!("it shows a {} namespace in which no process of the tree is, nor this program", kind.name))
        })?;
        if kind.kind == Namespace::Mnt {
            return Err(refused("it shows a mount namespace, which the kernel may not mount there again".to_owned()));
        }
        numbers.insert(entry.mnt_id, (namespace::flag(kind.kind).cast_unsigned(), number));
    }
    Ok(numbers)
}

/// The file of the namespace that an entry shows: one of the tree, or else that of the surroundings.
pub fn file(owned: &Owned, told: Option<&(u32, u32)>, entry: &MntEntry) -> Result<OwnedFd> {
    let found = told.and_then(|(flag, number)| {
        let kind = KINDS.iter().find(|kind| namespace::flag(kind.kind).cast_unsigned() == *flag)?;
        Some((kind, *number))
    });
    let (kind, number) = found.ok_or_else(|| {
        Error::unsupported(table::object(entry), "the image does not say which namespace it shows", "")
    })?;
    match owned.get(kind.kind, number) {
        Some(own) => rustix::io::fcntl_dupfd_cloexec(&own.file, 0).map_err(own.failed("duplicate its file")),
        None => Ok(namespace::open(&Task::current()?, kind.kind)?),
    }
}
