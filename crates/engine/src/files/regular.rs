//! Files that have a path: regular files, directories, device nodes that keep
//! no state per open, whatever was opened with `O_PATH`, files of /proc and
//! /sys. Also the files that a process uses without a descriptor: its
//! executable, mapped files, working directory and root.
//!
//! The record holds the path as the kernel shows it and the flags, with which
//! the file is opened again. What the path no longer leads to is carried by
//! [`ghost`](super::ghost).

use super::regular_path::{self, Subject};
use super::{Build, Collect, FileKind, OpenFile, Round, apply_status_flags, ghost, memfd};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, RegFileEntry};
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_kernel::proc::{self, fdinfo::Details};
use cryonaut_kernel::sys::glance::Place;
use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom, Stat};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Files that have a path.
#[derive(Debug)]
pub struct Regular;

/// Device and inode numbers, open flags, link, mount (-1 if the path is one of ours).
type PathKey = (u64, u64, u32, Vec<u8>, i32);
/// The same of a mapping, as /proc/PID/maps tells it; whose file systems the process sees in the place of the mount.
type MapKey = ((u32, u32), u64, u32, Vec<u8>, usize);

/// What the kernel has in the place of a path; open flags; whose file systems.
type PlaceKey = (Place, u32, usize);

/// What is remembered between files while collecting.
#[derive(Debug, Default)]
pub(super) struct Known {
    paths: HashMap<PathKey, Used>,
    mapped: HashMap<MapKey, Used>,
    places: HashMap<PlaceKey, Used>,
    pub(super) ghosts: ghost::Carried,
    pub(super) mounts: regular_path::Mounts,
}

impl FileKind for Regular {
    fn name(&self) -> &'static str {
        "file with a path"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Reg
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        if !file.link_bytes().starts_with(b"/") {
            return false;
        }
        if is_path_only(file.flags()) {
            return true;
        }
        match FileType::from_raw_mode(file.stat.st_mode) {
            FileType::RegularFile | FileType::Directory | FileType::BlockDevice => true,
            FileType::CharacterDevice => {
                is_memory(file.stat.st_rdev)
                    || !matches!(file.info.details, Details::Tun { .. })
                        && rustix::termios::tcgetattr(file.file).is_err()
            }
            _ => false,
        }
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let subject = Subject {
            object: file.object(),
            task: file.task,
            file: file.file,
            stat: file.stat,
            link: file.link_bytes(),
            flags: file.flags(),
        };
        let pos = if is_path_only(file.flags()) { 0 } else { file.info.pos as u64 };
        record(cx, &subject, id, pos, file.owner()?)
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let reg = part(entry)?;
        let file = regular_path::open_recorded(cx, reg)?;
        if !is_path_only(reg.flags) {
            check_size(&file, reg)?;
            if reg.pos != 0 {
                rustix::fs::seek(&file, SeekFrom::Start(reg.pos)).map_err(|e| {
                    Error::kernel(regular_path::object_of(reg), format!("set its position to {}", reg.pos), e)
                })?;
            }
            apply_status_flags(file.as_fd(), reg.id, reg.flags)?;
        }
        cx.ghosts.bury();
        Ok(file)
    }

    fn needs_processes(&self, entry: &FileEntry) -> bool {
        entry.reg.as_ref().is_some_and(|reg| regular_path::pid_in(&reg.name).is_some())
    }

    fn round(&self, entry: &FileEntry) -> Round {
        let tells_of_one = |reg: &RegFileEntry| {
            let part = |name: &[u8]| reg.name.windows(name.len()).any(|at| at == name);
            regular_path::pid_in(&reg.name).is_some() && (part(b"/fd/") || part(b"/fdinfo/"))
        };
        if entry.reg.as_ref().is_some_and(tells_of_one) { Round::Last } else { Round::First }
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.reg.as_ref().map(|reg| &reg.fown)
    }
}

/// A file that a process uses without a descriptor, written down.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Its id.
    pub id: u32,
    /// Whether it lives in memory alone: a memfd, or shared anonymous memory.
    pub memfd: bool,
}

/// Writes down a file that a process uses without a descriptor. `link` names it below `/proc/PID`: `exe`, `cwd`, `root`,
/// `map_files/START-END`; `flags` are those to open it with. Files already
/// written down with the same path and flags are not written again.
pub fn collect_path(cx: &mut Collect<'_>, task: &proc::Task, pid: i32, link: &str, flags: u32) -> Result<Used> {
    let target = task.link(link)?.into_os_string();
    let object = Object::Other(format!("process {pid}, {link} ({})", target.to_string_lossy()));
    let stat = rustix::fs::statat(task.dir(), link, AtFlags::empty())
        .map_err(|e| Error::kernel(object.clone(), "stat it", e))?;
    let mount =
        cx.regular.mounts.id_at(task, link).map_err(|e| Error::kernel(object.clone(), "ask for its mount", e))?;
    let name = link;
    let link = target.as_bytes();
    let key = (stat.st_dev, stat.st_ino, flags, link.to_vec(), mount);
    if let Some(&used) = cx.regular.paths.get(&key) {
        return Ok(used);
    }
    // Most paths lead to it: then nothing has to be opened.
    if !is_device(&stat) && mount < 0 && regular_path::Mounts::lead_to(link, &stat) {
        let id = cx.new_id();
        let entry = entry(id, flags, (link.to_vec(), -1), &stat, 0, FownEntry::default());
        return note(cx, key, &entry, id);
    }
    let file = task.open_file(name, OFlags::PATH)?;
    if memfd::is_memfd(file.as_fd(), &stat, link) {
        let id = memfd::collect_path(cx, file.as_fd(), &stat, link, flags, &object)?;
        let used = Used { id, memfd: true };
        cx.regular.paths.insert(key, used);
        return Ok(used);
    }
    let id = cx.new_id();
    let subject = Subject { object, task, file: file.as_fd(), stat, link, flags };
    let entry = record(cx, &subject, id, 0, FownEntry::default())?;
    note(cx, key, &entry, id)
}

/// The same, where it may be known by what the kernel has in the place of a path that it was written down.
pub fn collect_place(
    cx: &mut Collect<'_>,
    task: &proc::Task,
    pid: i32,
    (link, place): (&str, Option<Place>),
    flags: u32,
) -> Result<Used> {
    let key = place.map(|place| (place, flags, cx.regular.mounts.whose(task)));
    if let Some(used) = key.and_then(|key| cx.regular.places.get(&key)) {
        return Ok(*used);
    }
    let used = collect_path(cx, task, pid, link, flags)?;
    cx.regular.places.extend(key.map(|key| (key, used)));
    Ok(used)
}

/// Writes the record of a file that is used without a descriptor, once.
fn note(cx: &mut Collect<'_>, key: PathKey, entry: &FileEntry, id: u32) -> Result<Used> {
    cx.images.append(ImageKind::Files, None, entry, None)?;
    let used = Used { id, memfd: false };
    cx.regular.paths.insert(key, used);
    Ok(used)
}

/// Writes down a deleted file that something watches, and returns its id;
/// `None` if nobody in the tree has it open, for then it goes with the tree.
pub(super) fn collect_watched(
    cx: &mut Collect<'_>,
    task: &proc::Task,
    file: &OwnedFd,
    link: &[u8],
    object: Object,
) -> Result<Option<u32>> {
    let stat = rustix::fs::fstat(file).map_err(|e| Error::kernel(object.clone(), "stat it", e))?;
    let is_it = |pid: &i32| {
        let there = crate::freeze::pid_of(cx.speaker(*pid)).and_then(|tid| Ok(proc::Task::open(tid)?));
        let Ok(there) = there else { return false };
        let same = |fd: i32| {
            let found = rustix::fs::statat(there.dir(), format!("fd/{fd}"), AtFlags::empty());
            found.is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
        };
        there.fds().is_ok_and(|fds| fds.into_iter().any(same))
    };
    if !cx.pids.iter().any(is_it) {
        return Ok(None);
    }
    let id = cx.new_id();
    let subject = Subject { object, task, file: file.as_fd(), stat, link, flags: OFlags::PATH.bits() };
    let entry = record(cx, &subject, id, 0, FownEntry::default())?;
    cx.images.append(ImageKind::Files, None, &entry, None)?;
    Ok(Some(id))
}

/// Writes down the file of a mapping, opened with `flags`. The processes of a
/// tree map the same few files: one that was met before is not looked up.
pub fn collect_mapped(cx: &mut Collect<'_>, task: &proc::Task, pid: i32, vma: &Vma, flags: u32) -> Result<Used> {
    let key = (vma.dev, vma.inode, flags, vma.path.as_bytes().to_vec(), cx.regular.mounts.whose(task));
    if let Some(&used) = cx.regular.mapped.get(&key) {
        return Ok(used);
    }
    let used = collect_path(cx, task, pid, &vma.map_files_name(), flags)?;
    cx.regular.mapped.insert(key, used);
    Ok(used)
}

/// The record of a file that has nothing but its path and how it is open: another kind knows the rest.
pub fn plain_record(file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
    Ok(entry(id, file.flags(), (file.link_bytes().to_vec(), -1), &file.stat, 0, file.owner()?))
}

/// The record of a file; its contents too where no path leads to it.
fn record(cx: &mut Collect<'_>, subject: &Subject<'_>, id: u32, pos: u64, fown: FownEntry) -> Result<FileEntry> {
    if is_device(&subject.stat) && !is_path_only(subject.flags) {
        check_stateless(subject)?;
    }
    let mnt_id = cx.regular.mounts.recorded_id(subject)?;
    let name = regular_path::recorded_name(cx, subject, id)?;
    Ok(entry(id, subject.flags, (name, mnt_id), &subject.stat, pos, fown))
}

/// A record; of the path, and the id of its mount.
fn entry(id: u32, flags: u32, (name, mnt_id): (Vec<u8>, i32), stat: &Stat, pos: u64, fown: FownEntry) -> FileEntry {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let reg = RegFileEntry {
        id,
        flags,
        pos,
        fown,
        name,
        mnt_id: Some(mnt_id),
        size: is_file.then_some(stat.st_size as u64),
        mode: Some(stat.st_mode),
        ..RegFileEntry::default()
    };
    FileEntry { r#type: FdTypes::Reg as i32, id, reg: Some(reg), ..FileEntry::default() }
}

/// Whether it is a character device.
fn is_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
}

fn part(entry: &FileEntry) -> Result<&RegFileEntry> {
    entry
        .reg
        .as_ref()
        .ok_or_else(|| Error::bad_image("files.img", format!("file {:#x} has the type of a path, but none", entry.id)))
}

/// Whether it was opened with `O_PATH`.
pub(super) fn is_path_only(flags: u32) -> bool {
    flags & libc::O_PATH as u32 != 0
}

/// The memory devices (null, zero, full, random, urandom, kmsg): all of major 1.
fn is_memory(rdev: u64) -> bool {
    rustix::fs::major(rdev) == 1
}

/// Character devices of which an open file is nothing but a position: the
/// memory devices, hwrng and loop-control.
fn check_stateless(subject: &Subject<'_>) -> Result<()> {
    let rdev = subject.stat.st_rdev;
    match (rustix::fs::major(rdev), rustix::fs::minor(rdev)) {
        _ if is_memory(rdev) => Ok(()),
        (10, 183 | 237) => Ok(()),
        (major, minor) => Err(Error::unsupported(
            subject.object.clone(),
            format!("the driver of character device {major}:{minor} keeps state that cannot be read"),
            "close it before the checkpoint",
        )),
    }
}

/// A file that has become shorter has lost what the process is reading.
fn check_size(file: &OwnedFd, reg: &RegFileEntry) -> Result<()> {
    let Some(recorded) = reg.size else {
        return Ok(());
    };
    let object = || regular_path::object_of(reg);
    let stat = rustix::fs::fstat(file).map_err(|e| Error::kernel(object(), "stat it", e))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && (stat.st_size as u64) < recorded {
        return Err(Error::unsupported(
            object(),
            format!("it has {} bytes now, but had {recorded} at the checkpoint", stat.st_size),
            "bring back the file as it was at the checkpoint",
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "regular_tests.rs"]
mod tests;
