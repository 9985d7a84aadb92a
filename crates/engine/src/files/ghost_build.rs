//! Bringing deleted files back: each is made under its old name, so that the
//! kernel shows the same path for it, and deleted at once; a descriptor keeps
//! it until every record has opened it. So there is nothing to clean up; nor is
//! a name left behind if the restorer is killed between the two.
//!
//! Where the old name is taken, another beside it serves; where the directory
//! has gone, it is made for the moment.

use super::Build;
use super::regular_path::{object_of, pid_in, reopen, way_in_root};
use crate::users;
use crate::{Error, Result};
use cryonaut_image::records::{GhostChunkEntry, GhostFileEntry, RegFileEntry, RemapFilePathEntry, RemapType, Timeval};
use cryonaut_image::{EntryReader, ImageKind};
use cryonaut_kernel::sys::handle::{name_to_handle_at, open_by_handle_at};
use cryonaut_kernel::sys::mount;
use cryonaut_kernel::sys::process::{Child, Spawn, spawn_idle};
use cryonaut_kernel::sys::wait::{Who, wait};
use cryonaut_kernel::temporary_name::{TemporaryName, Thing};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The remapped files of an image, and those made so far.
#[derive(Debug, Default)]
pub(in crate::files) struct Haunted {
    /// By the id of the record; `None` until read.
    remaps: Option<HashMap<u32, (RemapType, u32)>>,
    /// `O_PATH`, by the type and id of what was remapped to.
    made: HashMap<(i32, u32), OwnedFd>,
    /// Files as they were opened with `O_TMPFILE`, by the id of the record.
    originals: HashMap<u32, OwnedFd>,
    /// Temporary links of the image that have been used.
    links: Vec<(Option<OwnedFd>, PathBuf)>,
    /// Has the pid of a process that has ended, while a file of its is opened.
    stand_in: Option<StandIn>,
    /// The same by pid, where its directory was opened: that can be entered
    /// only while the process is there.
    lasting: HashMap<u32, StandIn>,
}

/// A process that is there for its pid; ends with this.
#[derive(Debug)]
struct StandIn(Child);

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.0.pidfd, rustix::process::Signal::KILL);
        let _ = wait(Who::One(self.0.pid));
    }
}

impl Haunted {
    /// The file has been opened: the process that stood in for a dead one ends.
    pub(in crate::files) fn bury(&mut self) {
        self.stand_in = None;
    }

    /// Everything has been opened and entered: none stands in any more.
    pub(in crate::files) fn bury_all(&mut self) {
        self.stand_in = None;
        self.lasting.clear();
    }

    /// Hands over the temporary links that the checkpoint left for the image.
    pub(in crate::files) fn take_links(&mut self) -> UsedLinks {
        UsedLinks(std::mem::take(&mut self.links))
    }
}

/// Temporary links of an image that have been used.
#[derive(Debug)]
#[must_use = "the links stay until they are removed"]
pub struct UsedLinks(Vec<(Option<OwnedFd>, PathBuf)>);

impl UsedLinks {
    /// Removes them. To be called when the restored tree no longer depends on
    /// us: the image cannot be restored again afterwards.
    pub fn remove(self) {
        for (_directory, link) in self.0 {
            if let Err(errno) = rustix::fs::unlink(&link) {
                tracing::warn!("{}: cannot remove the temporary link: {errno}", link.display());
            }
        }
    }
}

/// If a record stands for a deleted file: that file, as an `O_PATH` descriptor.
pub(in crate::files) fn source(cx: &mut Build<'_>, reg: &RegFileEntry) -> Result<Option<OwnedFd>> {
    let Some((kind, to)) = remap_of(cx, reg.id)? else {
        return Ok(None);
    };
    let key = (kind as i32, to);
    if !cx.ghosts.made.contains_key(&key) {
        let made = match kind {
            RemapType::Ghost => make_ghost(cx, reg, to)?,
            RemapType::Linked => open_linked(cx, reg, to)?,
            RemapType::Procfs => return Ok(None),
        };
        cx.ghosts.made.insert(key, made);
    }
    let made = &cx.ghosts.made[&key];
    if let Some(other) = through_its_mount(cx, reg, made) {
        return Ok(Some(other));
    }
    made.try_clone().map(Some).map_err(|e| kernel_error(reg, "duplicate its descriptor", &e))
}

/// The same file through the mount of this record, if it was made through another: the file system may find it by its
/// handle, as those in memory do.
fn through_its_mount(cx: &Build<'_>, reg: &RegFileEntry, made: &OwnedFd) -> Option<OwnedFd> {
    let view = cx.mounts.view(reg.mnt_id, &reg.name).filter(|view| view.on_one_mount)?;
    if mount::id_of(view.root) == mount::id_of(made.as_fd()) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(view.root, c".", flags, Mode::empty()).ok()?;
    let (handle, _) = name_to_handle_at(made.as_fd(), c"", AtFlags::EMPTY_PATH).ok()?;
    open_by_handle_at(&top, &handle, OFlags::PATH | OFlags::CLOEXEC).ok()
}

/// If a record stands for a file of a process that has ended: makes a process
/// with its pid, which is there until the file has been opened.
pub(in crate::files) fn revive(cx: &mut Build<'_>, reg: &RegFileEntry) -> Result<()> {
    let own = remap_of(cx, reg.id)?;
    // CRIU says of one of its files alone that a process is no more.
    let is_dead = |pid: &u32| cx.ghosts.remaps.iter().flatten().any(|(_, to)| *to == (RemapType::Procfs, *pid));
    let pid = match own {
        Some((RemapType::Procfs, pid)) => pid,
        Some(_) => return Ok(()),
        None => match pid_in(&reg.name).map(i32::cast_unsigned).filter(is_dead) {
            Some(pid) => pid,
            None => return Ok(()),
        },
    };
    if cx.ghosts.lasting.contains_key(&pid) {
        return Ok(());
    }
    let born = spawn_idle(&Spawn { exit_signal: 0, set_tid: &[pid as i32], ..Spawn::default() });
    let child = born.map_err(|errno| Error::Kernel {
        object: object_of(reg),
        action: format!("make a process with the pid {pid}, to which it belonged"),
        errno,
        remedy: if errno == Errno::EXIST { "end the process that has this pid now" } else { "" },
    })?;
    let is_directory = reg.mode.is_some_and(|mode| FileType::from_raw_mode(mode) == FileType::Directory);
    if is_directory {
        cx.ghosts.lasting.insert(pid, StandIn(child));
    } else {
        cx.ghosts.stand_in = Some(StandIn(child));
    }
    Ok(())
}

fn remap_of(cx: &mut Build<'_>, id: u32) -> Result<Option<(RemapType, u32)>> {
    if cx.ghosts.remaps.is_none() {
        cx.ghosts.remaps = Some(read_remaps(cx)?);
    }
    Ok(cx.ghosts.remaps.as_ref().and_then(|remaps| remaps.get(&id)).copied())
}

fn kernel_error(reg: &RegFileEntry, action: &str, error: &std::io::Error) -> Error {
    Error::kernel(object_of(reg), action, crate::error::errno_of(error))
}

fn read_remaps(cx: &Build<'_>) -> Result<HashMap<u32, (RemapType, u32)>> {
    let entries: Vec<RemapFilePathEntry> = cx.images.read_all_optional(ImageKind::RemapFpath, None)?;
    // Images from before there were types have ghosts alone.
    Ok(entries
        .into_iter()
        .map(|e| {
            let kind = if e.remap_type.is_some() { e.remap_type() } else { RemapType::Ghost };
            (e.orig_id, (kind, e.remap_id))
        })
        .collect())
}

/// The record of this ghost that was opened with `O_TMPFILE`, if there is one:
/// such a file can be given a name later, a deleted one cannot.
fn nameless<'a>(cx: &Build<'a>, ghost: u32) -> Option<&'a RegFileEntry> {
    let tmpfile = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32;
    let remaps = cx.ghosts.remaps.iter().flatten();
    remaps
        .filter(|(_, to)| **to == (RemapType::Ghost, ghost))
        .filter_map(|(orig, _)| cx.records().get(orig)?.reg.as_ref())
        .find(|reg| reg.flags & tmpfile != 0)
}

/// If a record is that of the open(2) with `O_TMPFILE` that made a ghost: that
/// open file, at its start. No other has its flags.
pub(in crate::files) fn original(cx: &mut Build<'_>, id: u32) -> Option<OwnedFd> {
    cx.ghosts.originals.remove(&id)
}

fn make_ghost(cx: &mut Build<'_>, reg: &RegFileEntry, ghost: u32) -> Result<OwnedFd> {
    let failed = |action: &'static str| move |e| Error::kernel(object_of(reg), action, e);
    let mut reader = cx.images.entries(ImageKind::GhostFile, u64::from(ghost))?;
    let entry: GhostFileEntry = reader.require()?;
    let (_kept, path) = way_in_root(cx, reg);
    let nameless = nameless(cx, ghost);
    let file = if let Some(original) = nameless {
        let directory = path.parent().unwrap_or(Path::new("/"));
        // The rest of the status flags follow when it has been filled.
        let flags = OFlags::from_bits_retain(original.flags) - OFlags::APPEND - OFlags::DIRECT;
        let flags = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)
    } else {
        make_somewhere(&path, ghost, &entry)
    };
    let file = file.map_err(failed("make the deleted file again"))?;
    if FileType::from_raw_mode(entry.mode) == FileType::RegularFile {
        let writable = file.try_clone().map_err(|e| kernel_error(reg, "duplicate its descriptor", &e))?;
        fill(&mut reader, &entry, File::from(writable), reg)?;
    }
    let (uid, gid) = users::outside((entry.uid, entry.gid));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(&file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed("give it its owner"))?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    if FileType::from_raw_mode(entry.mode) != FileType::Symlink {
        rustix::fs::chmod(&*link, Mode::from_raw_mode(entry.mode & 0o7777)).map_err(failed("set its mode"))?;
    }
    if let (Some(atime), Some(mtime)) = (&entry.atim, &entry.mtim) {
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        rustix::fs::utimensat(CWD, &*link, &times, AtFlags::empty()).map_err(failed("set its times"))?;
    }
    // Not open for writing: it may be a program about to be run.
    let kept = reopen(file.as_fd(), OFlags::PATH).map_err(failed("open it again"))?;
    if let Some(original) = nameless {
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(failed("set its position"))?;
        cx.ghosts.originals.insert(original.id, file);
    }
    Ok(kept)
}

fn timespec(time: &Timeval) -> Timespec {
    Timespec { tv_sec: time.tv_sec as i64, tv_nsec: time.tv_usec as i64 * 1000 }
}

/// Makes and deletes the file at its path, or where that is taken or cannot be
/// had, at another.
fn make_somewhere(path: &Path, ghost: u32, entry: &GhostFileEntry) -> std::result::Result<OwnedFd, Errno> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".cr.{ghost:x}.ghost"));
    let name = Path::new(&beside).file_name().unwrap_or_default();
    let above = path.ancestors().skip(2).map(|directory| directory.join(name));
    let elsewhere = ["/tmp", "/dev/shm"].into_iter().map(|directory| Path::new(directory).join(name));
    let candidates = [path.to_owned(), PathBuf::from(&beside)].into_iter().chain(above).chain(elsewhere);
    let thing = match FileType::from_raw_mode(entry.mode) {
        FileType::Symlink => Thing::Symlink(c_string(OsStr::from_bytes(entry.symlnk_target()))?),
        FileType::Directory => Thing::File(FileType::Directory, Mode::RWXU, 0),
        kind => Thing::File(kind, Mode::RUSR | Mode::WUSR, entry.rdev.map_or(0, u64::from)),
    };
    let mut first = None;
    for candidate in candidates {
        match TemporaryName::new(CWD, &candidate).and_then(|name| name.open(&thing)) {
            Ok(file) => return Ok(file),
            Err(errno) => first = first.or(Some(errno).filter(|&e| e != Errno::EXIST)),
        }
    }
    Err(first.unwrap_or(Errno::EXIST))
}

fn c_string(path: impl AsRef<OsStr>) -> std::result::Result<CString, Errno> {
    CString::new(path.as_ref().as_bytes()).map_err(|_| Errno::INVAL)
}

/// Writes the contents of the ghost.
fn fill(reader: &mut EntryReader, entry: &GhostFileEntry, mut file: File, reg: &RegFileEntry) -> Result<()> {
    let failed = |e: std::io::Error| kernel_error(reg, "write the deleted file again", &e);
    if !entry.chunks() {
        let all = reader.remaining();
        return Ok(reader.copy_to(all, &mut file)?);
    }
    let size = entry.size.or(reg.size).unwrap_or(0);
    file.set_len(size).map_err(failed)?;
    while reader.remaining() > 0 {
        let at = reader.position();
        let chunk: GhostChunkEntry = reader.require()?;
        let end = chunk.off.checked_add(chunk.len).filter(|&end| end <= size);
        if end.is_none() {
            let found = format!("{} bytes at {}", chunk.len, chunk.off);
            return Err(reader.corrupt(at, format!("a stretch of a file of {size} bytes"), found).into());
        }
        file.seek(SeekFrom::Start(chunk.off)).map_err(failed)?;
        reader.copy_to(chunk.len, &mut file)?;
    }
    Ok(())
}

/// Opens a file that the checkpoint gave a temporary link, under its old name
/// for the moment, so that the kernel shows that.
fn open_linked(cx: &mut Build<'_>, reg: &RegFileEntry, to: u32) -> Result<OwnedFd> {
    let record = cx.record(to)?.reg.as_ref();
    let link = record.ok_or_else(|| Error::bad_image("remap-fpath.img", format!("file {to:#x} has no path")))?;
    let ((_kept, path), (way, link)) = (way_in_root(cx, reg), way_in_root(cx, link));
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let failed = |errno| Error::Kernel {
        object: object_of(reg),
        action: format!("open its temporary link {}", link.display()),
        errno,
        remedy: "such an image can be restored once, on the file system of the checkpoint",
    };
    let under_its_name = TemporaryName::new(CWD, &path).and_then(|name| name.open(&Thing::Link(c_string(&link)?)));
    let file = under_its_name.or_else(|_| open(&link));
    let file = file.map_err(failed)?;
    cx.ghosts.links.push((way, link));
    Ok(file)
}
