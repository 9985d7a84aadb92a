//! The mount table of a process that has a mount namespace of its own, told without the numbers that the kernel gives to
//! mounts, devices and groups: what belongs together is named by where it is first found.

use std::collections::BTreeMap;
use std::path::Path;

use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::proc::values::Namespace;

use super::{Object, Taking};

pub(super) fn take(taking: &mut Taking, object: &Object, task: &Task) {
    let ours = Task::current().ok().and_then(|task| task.namespace(Namespace::Mnt).ok()).flatten();
    if task.namespace(Namespace::Mnt).ok().flatten() == ours {
        return;
    }
    let Ok(mounts) = task.mountinfo() else { return };
    for (place, told) in table(&mounts) {
        taking.put(object, format!("mount.{place}"), told);
    }
}

/// What is told of each mount, by its place.
fn table(mounts: &[MountInfo]) -> BTreeMap<String, String> {
    let places: BTreeMap<i32, String> = mounts.iter().map(|mount| (mount.id, place(mount, mounts))).collect();
    let group = |id: Option<u32>, of: fn(&MountInfo) -> Option<u32>| match id {
        None => "none".to_owned(),
        id => first(mounts, &places, |mount| of(mount) == id).unwrap_or_else(|| "outside".to_owned()),
    };
    let tell = |mount: &MountInfo| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let device = first(mounts, &places, |other| other.dev == mount.dev).unwrap_or_default();
        let root = match mount.root.to_string_lossy().split_once(":[") {
            // The number of a namespace, which another has afterwards.
            Some((kind, _)) => {
                format!("{kind} of {}", first(mounts, &places, |other| other.root == mount.root).unwrap_or_default())
            }
            None => mount.root.display().to_string(),
        };
        let told = format!(
            "{root} of {device}, {} {} {} {}, peers {}, master {}{}",
            text(&mount.options),
            text(&mount.fs_type),
            text(&mount.source),
            text(&mount.super_options),
            group(mount.shared, |mount| mount.shared),
            group(mount.master, |mount| mount.shared),
            if mount.unbindable { ", unbindable" } else { "" },
        );
        (places[&mount.id].clone(), told)
    };
    mounts.iter().map(tell).collect()
}

/// The first place of those mounts.
fn first(mounts: &[MountInfo], places: &BTreeMap<i32, String>, is: impl Fn(&MountInfo) -> bool) -> Option<String> {
    mounts.iter().filter(|mount| is(mount)).map(|mount| places[&mount.id].clone()).min()
}

/// Where it stands: its path, and how many are below it there, each upon the other.
fn place(mount: &MountInfo, mounts: &[MountInfo]) -> String {
    let mut line = Vec::new();
    let mut up = mount;
    while let Some(parent) = mounts.iter().find(|one| one.id == up.parent && one.id != up.id) {
        line.push(parent.mount_point.as_path());
        up = parent;
    }
    let own: &Path = &mount.mount_point;
    let below = line.iter().filter(|parent| **parent == own).count();
    // What is mounted deeper and hidden has another parent than what is not.
    let through = line.iter().find(|parent| **parent != own).map(|parent| parent.display().to_string());
    format!("{} {below} on {}", own.display(), through.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryonaut_kernel::proc::mountinfo::parse;

    #[test]
    fn numbers_do_not_matter_and_what_belongs_together_does() {
        let one = "1 9 8:1 / / rw - ext4 d rw\n2 1 0:5 / /a rw shared:7 - tmpfs t rw\n3 1 0:5 /x /b rw master:7 - tmpfs t rw\n\
            4 2 0:6 / /a rw - tmpfs u rw\n";
        let two = "5 4 8:1 / / rw - ext4 d rw\n7 5 0:9 /x /b rw master:2 - tmpfs t rw\n6 5 0:9 / /a rw shared:2 - tmpfs t rw\n\
            8 6 0:10 / /a rw - tmpfs u rw\n";
        let told = |text: &str| table(&parse(text.as_bytes()).unwrap());
        assert_eq!(told(one), told(two));
        assert_eq!(told(one).len(), 4);
        assert_ne!(told(one), told(&two.replace("master:2", "master:3")));
        assert_ne!(told(one), told(&two.replace("0:9 /x", "0:11 /x")));
    }
}
