//! The mounts of a namespace as the image records them, from what mountinfo says.

use super::external::{self, DEVICE, Externals, FOUND_OUT};
use super::filesystem::{self, Making, NAMED, OTHER};
use super::paths;
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::records::MntEntry;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::proc::values::IdRange;

/// By what a root that has been removed ends in mountinfo.
pub const DELETED: &[u8] = b"//deleted";

/// Options of a mount and the `MS_*` by which the image records them.
const FLAGS: &[(&[u8], u64)] = &[
    (b"ro", libc::MS_RDONLY),
    (b"nosuid", libc::MS_NOSUID),
    (b"nodev", libc::MS_NODEV),
    (b"noexec", libc::MS_NOEXEC),
    (b"noatime", libc::MS_NOATIME),
    (b"nodiratime", libc::MS_NODIRATIME),
    (b"relatime", libc::MS_RELATIME),
    (b"nosymfollow", NOSYMFOLLOW),
];

/// `MS_NOSYMFOLLOW` (linux/mount.h).
pub const NOSYMFOLLOW: u64 = 256;

/// The same of a superblock; what else it has are its options.
const SUPER_FLAGS: &[(&[u8], u64)] = &[
    (b"ro", libc::MS_RDONLY),
    (b"sync", libc::MS_SYNCHRONOUS),
    (b"dirsync", libc::MS_DIRSYNC),
    (b"mand", libc::MS_MANDLOCK),
];

fn flag_of(table: &[(&[u8], u64)], word: &[u8]) -> Option<u64> {
    table.iter().find(|(name, _)| *name == word).map(|(_, flag)| *flag)
}

/// A device number as the kernel has it inside, as the image records it.
pub fn kernel_dev((major, minor): (u32, u32)) -> u32 {
    major << 20 | minor
}

/// For messages.
pub fn object(entry: &MntEntry) -> Object {
    let place = String::from_utf8_lossy(&entry.mountpoint);
    let name = filesystem::by_number(entry.fstype, entry.fsname()).map_or(entry.fsname(), |known| known.name);
    Object::Other(format!("mount {} ({place}, {})", entry.mnt_id, String::from_utf8_lossy(name)))
}

/// The record of a mount that is not from outside.
pub fn record(info: &MountInfo) -> MntEntry {
    let words = |text: &'_ [u8]| text.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut flags = words(&info.options).iter().filter_map(|word| flag_of(FLAGS, word)).fold(0, |all, one| all | one);
    // The kernel shows nothing for it, and takes nothing for relatime.
    if flags & (libc::MS_RELATIME | libc::MS_NOATIME) == 0 {
        flags |= libc::MS_STRICTATIME;
    }
    let kinds = [(info.shared.is_some(), libc::MS_SHARED), (info.master.is_some(), libc::MS_SLAVE)];
    for (_, flag) in kinds.into_iter().chain([(info.unbindable, libc::MS_UNBINDABLE)]).filter(|(is, _)| *is) {
        flags |= flag;
    }
    let (mut sb_flags, mut options) = (0, Vec::new());
    for word in words(&info.super_options) {
        match flag_of(SUPER_FLAGS, &word) {
            Some(flag) => sb_flags |= flag,
            None if word == b"rw" || word.is_empty() => {}
            None => options.push(as_inside(word)),
        }
    }
    let (number, name) = match filesystem::by_name(&info.fs_type) {
        Some(known) => (known.number, (known.number == NAMED).then(|| known.name.to_vec())),
        None => (OTHER, None),
    };
    let root = paths::of(&info.root);
    let deleted = root.ends_with(DELETED);
    MntEntry {
        fstype: number,
        mnt_id: info.id.cast_unsigned(),
        root_dev: kernel_dev(info.dev),
        parent_mnt_id: info.parent.cast_unsigned(),
        flags: flags as u32,
        root: root.strip_suffix(DELETED).unwrap_or(root).to_vec(),
        mountpoint: paths::of(&info.mount_point).to_vec(),
        source: info.source.clone(),
        options: options.join(&b','),
        shared_id: Some(info.shared.unwrap_or(0)),
        master_id: Some(info.master.unwrap_or(0)),
        fsname: name,
        deleted: deleted.then_some(true),
        sb_flags: Some(sb_flags as u32),
        ..MntEntry::default()
    }
}

/// An option that names an owner: the kernel shows it as we see it, and is told as the maker of the file system has it.
fn as_inside(word: Vec<u8>) -> Vec<u8> {
    let number = |name: &[u8]| std::str::from_utf8(word.strip_prefix(name)?).ok()?.parse::<u32>().ok();
    match (number(b"uid="), number(b"gid=")) {
        (Some(user), _) => format!("uid={}", users::user_inside(user)).into_bytes(),
        (_, Some(group)) => format!("gid={}", users::inside((u32::MAX, group)).1).into_bytes(),
        _ => word,
    }
}

/// Records the mounts of a namespace; `ours` are those of the caller's.
pub fn record_all(mounts: &[MountInfo], ours: &[MountInfo], externals: &Externals) -> Result<Vec<MntEntry>> {
    let entries = mounts.iter().map(|mount| (mount, record(mount)));
    let mut entries: Vec<(&MountInfo, MntEntry)> = entries.collect();
    for (info, entry) in &mut entries {
        mark_external(info, entry, ours, externals);
        check_options(info, entry)?;
    }
    let root = mounts.iter().find(|mount| paths::of(&mount.mount_point) == b"/").map(|mount| mount.dev);
    for (info, entry) in &entries {
        // The tree's root may be of any kind, and mounts of parts of it.
        if entry.ext_key.is_none() && Some(info.dev) != root {
            refuse_by_type(info, entry)?;
        }
    }
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

/// Owners in options, which the kernel tells by their ids for us, by those of the tree's user namespace, in which they are
/// set again.
pub fn tell_owners_from_inside(entries: &mut [MntEntry], users: &[IdRange], groups: &[IdRange]) {
    let inside = |word: &[u8]| -> Option<Vec<u8>> {
        let (key, map) =
            [("uid=", users), ("gid=", groups)].into_iter().find(|(key, _)| word.starts_with(key.as_bytes()))?;
        let id: u32 = std::str::from_utf8(&word[key.len()..]).ok()?.parse().ok()?;
        let range = map.iter().find(|range| id.checked_sub(range.outside).is_some_and(|more| more < range.count))?;
        Some(format!("{key}{}", range.inside + (id - range.outside)).into_bytes())
    };
    for entry in entries {
        let words = entry.options.split(|byte| *byte == b',').map(|word| inside(word).unwrap_or_else(|| word.to_vec()));
        entry.options = words.collect::<Vec<_>>().join(&b',');
    }
}

/// Mountpoints that the caller names are those of the `first` namespace of the tree: in others, what stands there is from
/// outside only if it is the same.
pub fn forget_namesakes(entries: &mut [MntEntry], first: &[MntEntry]) {
    for entry in entries {
        let named = entry.ext_key.as_deref().is_some_and(|key| key != FOUND_OUT && key != DEVICE);
        let same = |one: &MntEntry| (&one.ext_key, one.root_dev) == (&entry.ext_key, entry.root_dev);
        if named && !first.iter().any(same) {
            (entry.ext_key, entry.internal_sharing) = (None, None);
        }
    }
}

/// Whether it is the root of its namespace.
pub fn is_root(entry: &MntEntry) -> bool {
    entry.mountpoint == b"/"
}

/// What can be said of options alone.
fn check_options(info: &MountInfo, entry: &MntEntry) -> Result<()> {
    let making = filesystem::by_name(&info.fs_type).map(|known| known.making);
    let has = |word: &[u8]| info.super_options.split(|byte| *byte == b',').any(|one| one == word);
    if entry.ext_key.is_none() && making == Some(Making::Filled) && (has(b"usrquota") || has(b"grpquota")) {
        return Err(Error::unsupported(object(entry), "it has quotas, which cannot be carried", ""));
    }
    Ok(())
}

/// File systems that are nothing without a process that serves them.
fn refuse_by_type(info: &MountInfo, entry: &MntEntry) -> Result<()> {
    let reason = match info.fs_type.as_slice() {
        b"autofs" => "what is mounted upon it is up to an automounter (autofs), to which it cannot be given back",
        name if name == b"fuse" || name == b"fuseblk" || name.starts_with(b"fuse.") => {
            "its files are those of a process that serves them (FUSE), with which it cannot be connected again"
        }
        _ => return Ok(()),
    };
    let name = String::from_utf8_lossy(&info.fs_type).into_owned();
    let place = String::from_utf8_lossy(&entry.mountpoint).into_owned();
    Err(Error::unsupported(
        Object::Other(format!("mount {} ({place}, {name})", entry.mnt_id)),
        reason,
        "leave it out with --skip-mnt MOUNTPOINT, or name another for its place with --external mnt[MOUNTPOINT]:NAME",
    ))
}

/// Forgets the mounts with these mountpoints, and those upon them, but not the root.
pub fn leave_out(mounts: &mut Vec<MountInfo>, places: &[String]) {
    if places.is_empty() {
        return;
    }
    let is_named = |mount: &MountInfo| {
        let place = paths::of(&mount.mount_point);
        place != b"/" && places.iter().any(|named| named.as_bytes() == place)
    };
    let mut left_out: Vec<i32> = mounts.iter().filter(|mount| is_named(mount)).map(|mount| mount.id).collect();
    let mut known = 0;
    while known < left_out.len() {
        let upon = left_out[known];
        left_out.extend(mounts.iter().filter(|mount| mount.parent == upon && mount.id != upon).map(|mount| mount.id));
        known += 1;
    }
    mounts.retain(|mount| !left_out.contains(&mount.id));
}

/// Takes note of what is from outside.
fn mark_external(info: &MountInfo, entry: &mut MntEntry, ours: &[MountInfo], externals: &Externals) {
    let shared_with_us = || info.shared.is_some() && ours.iter().any(|one| one.shared == info.shared);
    if let Some(value) = externals.value(&entry.mountpoint) {
        entry.ext_key = Some(value.to_owned());
        entry.internal_sharing = (info.shared.is_some() && !shared_with_us()).then_some(true);
        return;
    }
    let is_whole = entry.root == b"/";
    if filesystem::by_name(&info.fs_type).is_none() && is_whole {
        let key = format!("{}/{}", info.dev.0, info.dev.1);
        if let Some(value) = externals.device(&key) {
            entry.ext_key = Some(DEVICE.to_owned());
            entry.source = format!("dev[{value}]").into_bytes();
            entry.fstype = NAMED;
            entry.fsname = Some(info.fs_type.clone());
            return;
        }
    }
    if !externals.auto || is_root(entry) {
        return;
    }
    let Some((path, mount)) = external::seen_by_us(info, ours) else { return };
    let receives = info.master.is_some();
    if info.shared.is_some() && !externals.sharing
        || receives && (!externals.masters || info.master != mount.shared && info.master != mount.master)
    {
        return;
    }
    entry.ext_key = Some(FOUND_OUT.to_owned());
    entry.internal_sharing = (info.shared.is_some() && info.shared != mount.shared).then_some(true);
    entry.source = path;
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryonaut_kernel::proc::mountinfo::parse;

    #[test]
    fn records_are_those_of_the_format() {
        let mounts = parse(
            b"30 20 0:31 /x /a ro,nosuid,nodev master:7 shared:8 - tmpfs t ro,size=10k,mode=755,sync\n\
            31 30 0:32 /gone//deleted /a/b rw,noatime unbindable - ext4 /dev/x rw\n",
        )
        .unwrap();
        let all = record_all(&mounts, &[], &Externals::default()).unwrap();
        let expected = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_STRICTATIME;
        assert_eq!(u64::from(all[0].flags), expected | libc::MS_SHARED | libc::MS_SLAVE);
        assert_eq!((all[0].fstype, all[0].mnt_id, all[0].root_dev, all[0].parent_mnt_id), (5, 30, 31, 20));
        assert_eq!((all[0].options.as_slice(), all[0].sb_flags), (&b"size=10k,mode=755"[..], Some(17)));
        assert_eq!((all[0].shared_id, all[0].master_id), (Some(8), Some(7)));
        assert_eq!((all[1].root.as_slice(), all[1].deleted, all[1].fstype), (&b"/gone"[..], Some(true), 0));
        assert_eq!(u64::from(all[1].flags), libc::MS_NOATIME | libc::MS_UNBINDABLE);
    }

    #[test]
    fn what_is_to_be_left_out_goes_with_all_upon_it() {
        let mounts = parse(
            b"30 20 8:1 / / rw - ext4 /dev/a rw\n31 30 0:5 / /gone rw - tmpfs t rw\n32 31 0:6 / /gone/below rw - tmpfs t rw\n\
            33 30 0:7 / /kept rw - tmpfs t rw\n34 30 0:8 / /f rw - fuse.sshfs s rw\n35 30 0:9 / /a rw - autofs a rw\n",
        )
        .unwrap();
        let left = |places: &[&str]| {
            let mut mounts = mounts.clone();
            leave_out(&mut mounts, &places.iter().map(|&place| place.to_owned()).collect::<Vec<_>>());
            mounts
        };
        let ids = |mounts: Vec<MountInfo>| mounts.into_iter().map(|mount| mount.id).collect::<Vec<_>>();
        assert_eq!(ids(left(&["/", "/gone"])), [30, 33, 34, 35]);
        assert_eq!(ids(left(&["/none"])), [30, 31, 32, 33, 34, 35]);
        let refused = |places: &[&str]| {
            record_all(&left(places), &[], &Externals::default()).map_err(|error| error.to_string()).err()
        };
        assert!(refused(&["/a"]).is_some_and(|text| text.contains("FUSE") && text.contains("/f, fuse.sshfs")));
        assert!(refused(&["/f"]).is_some_and(|text| text.contains("autofs")));
        assert_eq!(refused(&["/a", "/f"]), None);
    }

    #[test]
    fn what_is_from_outside_is_named() {
        let ours = parse(b"20 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n").unwrap();
        let mounts = parse(
            b"30 29 8:1 /r / rw - ext4 /dev/a rw\n31 30 8:1 /v /v rw shared:1 - ext4 /dev/a rw\n\
            32 30 8:1 /v /w rw shared:9 - ext4 /dev/a rw\n33 30 8:1 /v /u rw master:1 - ext4 /dev/a rw\n\
            34 30 8:9 / /d rw - xfs /dev/d rw\n",
        )
        .unwrap();
        let with = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|&text| text.to_owned()).collect();
            record_all(&mounts, &ours, &Externals::of(&given)).unwrap()
        };
        let named = with(&["mnt[/v]:V", "dev[8/9]:D"]);
        assert_eq!((named[1].ext_key.as_deref(), named[1].internal_sharing), (Some("V"), None));
        assert_eq!((named[4].ext_key.as_deref(), named[4].source.as_slice()), (Some(DEVICE), &b"dev[D]"[..]));
        assert!(named[0].ext_key.is_none() && named[2].ext_key.is_none());
        let found = with(&["mnt[]"]);
        assert!(found[1..].iter().all(|entry| entry.ext_key.is_none()));
        let found = with(&["mnt[]:ms"]);
        assert!(found[0].ext_key.is_none());
        assert_eq!(found[1].source, b"/v");
        assert_eq!(found.iter().map(|e| e.internal_sharing).collect::<Vec<_>>(), [None, None, Some(true), None, None]);
        assert_eq!(found[3].ext_key.as_deref(), Some(FOUND_OUT));
    }
}
