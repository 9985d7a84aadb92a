//! Directories of cgroups with their properties: read into records, and made from them.

use super::hierarchy::{Hierarchy, described};
use super::{CgroupMode, CgroupOptions, properties};
use crate::error::errno_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{CgroupDirEntry, CgroupPerms, CgroupPropEntry};
use cryonaut_kernel::Errno;
use std::fs::{self, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// The most that a property's file holds; what has more is none.
const VALUE_MAX: usize = 64 << 10;

/// The deepest that directories nest; the format's readers stop soon after.
const DEPTH_MAX: usize = 50;

fn failed(hierarchy: &Hierarchy, path: &str, action: impl Into<String>, error: &io::Error) -> Error {
    let object = Object::Other(format!("{} ({path})", described(&hierarchy.name)));
    Error::kernel(object, action, errno_of(error))
}

/// Reads a directory and all below it; `path` is from the top, `name` how the record calls it.
pub fn read(
    hierarchy: &Hierarchy,
    path: &str,
    name: &str,
    options: &CgroupOptions,
    depth: usize,
) -> Result<CgroupDirEntry> {
    if depth > DEPTH_MAX {
        return Err(failed(
            hierarchy,
            path,
            "write it down: it nests too deep",
            &io::Error::from(ErrorKind::InvalidInput),
        ));
    }
    let dir = hierarchy.directory(path);
    let failed = |error: &io::Error| failed(hierarchy, path, "read it", error);
    let metadata = fs::metadata(&dir).map_err(|e| failed(&e))?;
    let controllers = controllers(hierarchy, &dir);
    let names = properties::names(&hierarchy.name, &controllers, options);
    let properties = names.into_iter().filter_map(|name| property(&dir, name)).collect();
    let mut children = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let child = entry.file_name().to_string_lossy().into_owned();
        let below = format!("{}/{child}", super::trimmed(path));
        children.push(read(hierarchy, &below, &child, options, depth + 1)?);
    }
    children.sort_by(|a, b| a.dir_name.cmp(&b.dir_name));
    Ok(CgroupDirEntry {
        dir_name: name.as_bytes().to_vec(),
        children,
        properties,
        dir_perms: Some(permissions(&metadata)),
    })
}

/// The controllers of a directory: in version 2 those that its parent lets it have.
fn controllers(hierarchy: &Hierarchy, dir: &Path) -> Vec<String> {
    if hierarchy.is_unified() {
        let told = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        return told.split_whitespace().map(str::to_owned).collect();
    }
    hierarchy.name.split(',').map(str::to_owned).collect()
}

fn permissions(of: &Metadata) -> CgroupPerms {
    CgroupPerms { mode: of.mode(), uid: of.uid(), gid: of.gid() }
}

/// A property, if the kernel has it and lets it be read.
fn property(dir: &Path, name: &str) -> Option<CgroupPropEntry> {
    let file = dir.join(name);
    let metadata = fs::metadata(&file).ok()?;
    if properties::lists_tasks(name) {
        return Some(CgroupPropEntry { name: name.into(), value: Vec::new(), perms: Some(permissions(&metadata)) });
    }
    let mut value = fs::read(&file).ok().filter(|value| value.len() <= VALUE_MAX)?;
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    Some(CgroupPropEntry { name: name.into(), value, perms: Some(permissions(&metadata)) })
}

/// Directories that we have made. Unless they are kept, they go again.
#[derive(Debug, Default)]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// The tree is there.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.drain(..).rev() {
            // Somebody else may have moved in, or taken it away.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Makes a directory and all below it, `path` being the one above, as far as the mode says.
pub fn make(
    hierarchy: &Hierarchy,
    above: &str,
    entry: &CgroupDirEntry,
    mode: CgroupMode,
    made: &mut Made,
) -> Result<()> {
    let name = String::from_utf8_lossy(&entry.dir_name);
    let path = format!("{}/{}", super::trimmed(above), name.trim_matches('/'));
    if name.split('/').any(|part| part == "..") {
        return Err(Error::bad_image("cgroup.img", format!("'{name}' leads out of its hierarchy")));
    }
    let dir = hierarchy.directory(&path);
    let is_new = make_one(hierarchy, &path, &dir, mode, made)?;
    if is_new {
        let perms = entry.dir_perms.as_ref();
        perms
            .map_or(Ok(()), |perms| permit(&dir, perms))
            .map_err(|e| failed(hierarchy, &path, "give it its owner", &e))?;
    }
    if mode.sets_properties(is_new) {
        for property in &entry.properties {
            set(hierarchy, &path, &dir, property, is_new)?;
        }
    }
    entry.children.iter().try_for_each(|child| make(hierarchy, &path, child, mode, made))
}

/// Whether the directory has been made; those above it are as well.
fn make_one(hierarchy: &Hierarchy, path: &str, dir: &Path, mode: CgroupMode, made: &mut Made) -> Result<bool> {
    if dir.is_dir() {
        if mode == CgroupMode::Strict {
            let exists = io::Error::from_raw_os_error(Errno::EXIST.raw_os_error());
            return Err(failed(hierarchy, path, "make it (--manage-cgroups=strict)", &exists));
        }
        return Ok(false);
    }
    if !mode.makes() {
        let missing = io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        return Err(failed(hierarchy, path, "find it, and the mode of --manage-cgroups makes none", &missing));
    }
    let mut above = PathBuf::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        above.push(part);
        let dir = hierarchy.directory(&above.to_string_lossy());
        match fs::create_dir(&dir) {
            Ok(()) => {
                let parent = dir.parent().map(Path::to_path_buf).unwrap_or_default();
                inherit_cpuset(&parent, &dir);
                made.0.push(dir);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(hierarchy, path, "make it", &error)),
        }
    }
    Ok(true)
}

/// A new cpuset of version 1 has no processors, and takes no tasks; those between the top and the tree's are in no record.
fn inherit_cpuset(parent: &Path, dir: &Path) {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let has =
            |dir: &Path| fs::read_to_string(dir.join(name)).map(|text| text.trim().to_owned()).unwrap_or_default();
        if has(dir).is_empty() && !has(parent).is_empty() {
            // What is missing is told by the move that it makes impossible.
            let _ = fs::write(dir.join(name), has(parent));
        }
    }
}

fn permit(file: &Path, perms: &CgroupPerms) -> io::Result<()> {
    let now = fs::metadata(file)?;
    if (now.uid(), now.gid()) != (perms.uid, perms.gid) {
        chown(file, Some(perms.uid), Some(perms.gid))?;
    }
    if (now.mode() ^ perms.mode) & 0o7777 != 0 {
        fs::set_permissions(file, Permissions::from_mode(perms.mode & 0o7777))?;
    }
    Ok(())
}

/// Gives a property its value, unless it has it.
fn set(hierarchy: &Hierarchy, path: &str, dir: &Path, property: &CgroupPropEntry, is_new: bool) -> Result<()> {
    let name = property.name.as_str();
    if name.contains('/') {
        return Err(Error::bad_image("cgroup.img", format!("'{name}' is no property")));
    }
    let file = dir.join(name);
    let Ok(metadata) = fs::metadata(&file) else {
        tracing::warn!("{} ({path}): this kernel has no {name}", described(&hierarchy.name));
        return Ok(());
    };
    let failed = |e: &io::Error| {
        failed(hierarchy, path, format!("set {name} to '{}'", String::from_utf8_lossy(&property.value)), e)
    };
    let now = fs::read(&file).unwrap_or_default();
    if !properties::lists_tasks(name) && now.trim_ascii() != property.value.trim_ascii() {
        write_value(dir, &file, name, &property.value, &now).map_err(|e| failed(&e))?;
    }
    let differs = |perms: &&CgroupPerms| {
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()) != (perms.mode & 0o7777, perms.uid, perms.gid)
    };
    match property.perms.as_ref().filter(differs).filter(|_| is_new) {
        Some(perms) => permit(&file, perms).map_err(|e| failed(&e)),
        None => Ok(()),
    }
}

/// Writes a value in the form that its file takes, which is not always that in which it tells it.
fn write_value(dir: &Path, file: &Path, name: &str, value: &[u8], now: &[u8]) -> io::Result<()> {
    let words =
        |text: &[u8]| -> Vec<String> { String::from_utf8_lossy(text).split_whitespace().map(str::to_owned).collect() };
    match name {
        "devices.list" => {
            fs::write(dir.join("devices.deny"), "a")?;
            let lines = value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.into_iter().try_for_each(|line| fs::write(dir.join("devices.allow"), line))
        }
        "memory.oom_control" => {
            let told = words(value);
            let disabled = told.iter().position(|word| word == "oom_kill_disable").and_then(|at| told.get(at + 1));
            fs::write(file, disabled.map_or("0", String::as_str))
        }
        "cgroup.subtree_control" => {
            let has = words(now);
            words(value)
                .iter()
                .filter(|word| !has.contains(word))
                .try_for_each(|word| fs::write(file, format!("+{word}")))
        }
        // A directory is of another type because of what it is in: only this one is chosen.
        "cgroup.type" if value != b"threaded" => Ok(()),
        "net_prio.ifpriomap" | "io.max" => {
            let lines = value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.into_iter().try_for_each(|line| fs::write(file, line))
        }
        _ => fs::write(file, value),
    }
}
