//! Mounts through which all of a file system can be seen, also where others hide them.
//!
//! A clone of a mount shows what is mounted over, for nothing is mounted on it. One that cannot be reached by its path is
//! looked for in a copy of the namespace, in which what hides it is taken away. But to let go of a clone takes as long as
//! RCU wants (2 to 12 ms each): a mount on which nothing is mounted is looked into itself, and clones are closed by a thread
//! for which nobody waits.

use super::table::{DELETED, kernel_dev};
use super::{mounts_here, paths};
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::sys::mount;
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Mounts of a file system: what each shows of it, and itself or a clone.
pub type Tops = Vec<(Vec<u8>, OwnedFd)>;

/// Of each of these file systems (their device numbers), mounts that together show all that can be seen of it in the
/// `namespace`, in which the calling thread is. `proc` is the directory of this process in /proc. The thread may be in
/// another namespace afterwards, and is to end.
pub fn tops(
    proc: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    devs: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, Tops>, Errno> {
    let mut found: BTreeMap<u32, Tops> = devs.iter().map(|dev| (*dev, Tops::new())).collect();
    let mut left: Vec<(u32, Vec<u8>)> = Vec::new();
    let mounts = mounts_here(proc)?;
    for (dev, mount) in widest(&mounts, devs) {
        match bare(mount, &mounts)? {
            Some(bare) => found.entry(dev).or_default().push((paths::of(&mount.root).to_vec(), bare)),
            None => left.push((dev, paths::of(&mount.root).to_vec())),
        }
    }
    if left.is_empty() {
        return Ok(found);
    }
    mount::copy_namespace(namespace)?;
    while !left.is_empty() {
        let mounts = mounts_here(proc)?;
        let before = left.len();
        let mut hidden = None;
        let mut still = Vec::new();
        for (dev, root) in left {
            let is_it = |one: &&MountInfo| kernel_dev(one.dev) == dev && paths::of(&one.root) == root;
            let mut clone = None;
            for mount in mounts.iter().filter(is_it) {
                clone = clone.or(bare(mount, &mounts)?);
                hidden = hidden.or(Some(mount));
            }
            match clone {
                Some(clone) => found.entry(dev).or_default().push((root, clone)),
                None => still.push((dev, root)),
            }
        }
        left = still;
        if left.len() == before {
            let hidden = hidden.ok_or(Errno::NOENT)?;
            take_away_a_hider(hidden, &mounts)?;
        }
    }
    Ok(found)
}

/// One mount for each part of these file systems that is not shown by another.
fn widest<'m>(mounts: &'m [MountInfo], devs: &BTreeSet<u32>) -> Vec<(u32, &'m MountInfo)> {
    let mut chosen: Vec<(u32, &MountInfo)> = Vec::new();
    let there =
        |mount: &&MountInfo| devs.contains(&kernel_dev(mount.dev)) && !paths::of(&mount.root).ends_with(DELETED);
    let mut all: Vec<&MountInfo> = mounts.iter().filter(there).collect();
    // An idmapped one shows other owners than there are, and may not let us open what it shows.
    all.sort_by_key(|mount| (paths::depth(paths::of(&mount.root)), is_idmapped(mount), !is_reachable(mount)));
    for mount in all {
        let dev = kernel_dev(mount.dev);
        let shown = |(other, wide): &(u32, &MountInfo)| {
            *other == dev && paths::below(paths::of(&mount.root), paths::of(&wide.root)).is_some()
        };
        if !chosen.iter().any(shown) {
            chosen.push((dev, mount));
        }
    }
    chosen
}

/// Whether it shows other owners than the file system has.
pub fn is_idmapped(mount: &MountInfo) -> bool {
    mount.options.split(|byte| *byte == b',').any(|word| word == b"idmapped")
}

fn at(mount: &MountInfo) -> Option<OwnedFd> {
    let open =
        rustix::fs::open(&mount.mount_point, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
    (mount::id_of(open.as_fd()) == Ok(mount.id) && mount::is_top(&open)).then_some(open)
}

fn is_reachable(mount: &MountInfo) -> bool {
    at(mount).is_some()
}

/// A mount without what others have mounted on it; `None` if its path does not lead to it, or it is not to be cloned.
/// EOPNOTSUPP if it does not show who owns what.
fn bare(mount: &MountInfo, mounts: &[MountInfo]) -> Result<Option<OwnedFd>, Errno> {
    if is_idmapped(mount) {
        return Err(Errno::OPNOTSUPP);
    }
    let Some(open) = at(mount) else { return Ok(None) };
    if !mounts.iter().any(|other| other.parent == mount.id && other.id != mount.id) {
        return Ok(Some(open));
    }
    match mount::clone_at(open.as_fd(), b"") {
        Err(Errno::INVAL) if mount.unbindable => Ok(None),
        clone => clone.map(Some),
    }
}

/// Takes away one mount that hides another.
fn take_away_a_hider(hidden: &MountInfo, mounts: &[MountInfo]) -> Result<(), Errno> {
    let mut line = vec![hidden.id];
    let mut up = hidden;
    while let Some(parent) = mounts.iter().find(|one| one.id == up.parent && one.id != up.id) {
        line.push(parent.id);
        up = parent;
    }
    let place = paths::of(&hidden.mount_point);
    let hides = |one: &&MountInfo| {
        !line.contains(&one.id) && paths::below(place, paths::of(&one.mount_point)).is_some() && is_reachable(one)
    };
    let hider = mounts.iter().find(hides).ok_or(Errno::NOENT)?;
    rustix::mount::unmount(&hider.mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}
