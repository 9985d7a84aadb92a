//! Files that no path leads to any more. Deleted ones travel in the image
//! (`ghost-file-N.img`); ones that were deleted under the path by which they
//! were opened but live under another get a temporary name beside it.
//! `remap-fpath.img` says which record is such a file.

use super::Collect;
use super::regular_path::{Subject, pid_in, reopen};
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::records::{
    FdTypes, FileEntry, GhostChunkEntry, GhostFileEntry, RegFileEntry, RemapFilePathEntry, RemapType, Timeval,
};
use cryonaut_image::{EntryWriter, ImageKind};
use rustix::fs::{AtFlags, CWD, FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsRawFd, OwnedFd};

pub use super::ghost_build::UsedLinks;
pub(super) use super::ghost_build::{Haunted, original, revive, source};

/// The ghosts and links made so far.
#[derive(Debug, Default)]
pub(super) struct Carried {
    ghosts: HashMap<(u64, u64), u32>,
    linked: HashMap<(u64, u64), u32>,
    links: NewLinks,
}

impl Carried {
    pub(super) fn take_links(&mut self) -> NewLinks {
        std::mem::take(&mut self.links)
    }
}

/// Temporary links that an image will need; dropped, they are removed.
#[derive(Debug, Default)]
pub struct NewLinks(Vec<(OwnedFd, String)>);

impl NewLinks {
    /// The image is complete: the links belong to it now.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewLinks {
    fn drop(&mut self) {
        for (directory, name) in &self.0 {
            if let Err(errno) = rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                tracing::warn!("cannot remove the temporary link {name}: {errno}");
            }
        }
    }
}

fn remap(cx: &Collect<'_>, orig_id: u32, remap_id: u32, kind: RemapType) -> Result<()> {
    let entry = RemapFilePathEntry { orig_id, remap_id, remap_type: Some(kind as i32) };
    Ok(cx.images.append(ImageKind::RemapFpath, None, &entry, None)?)
}

/// Puts a deleted file into the image, once for all that have it open, as what
/// the record `id` stands for.
pub(super) fn carry(cx: &mut Collect<'_>, subject: &Subject<'_>, id: u32) -> Result<()> {
    let key = (subject.stat.st_dev, subject.stat.st_ino);
    let ghost = match cx.regular.ghosts.ghosts.get(&key) {
        Some(&ghost) => ghost,
        None => {
            let ghost = cx.regular.ghosts.ghosts.len() as u32 + 1;
            write(cx, subject, ghost)?;
            cx.regular.ghosts.ghosts.insert(key, ghost);
            ghost
        }
    };
    remap(cx, id, ghost, RemapType::Ghost)
}

/// Notes that the record `id` stands for a file of a process that has ended.
pub(super) fn stand_for_dead(cx: &Collect<'_>, subject: &Subject<'_>, id: u32, name: &[u8]) -> Result<()> {
    let threads = format!("/proc/{}/task/", pid_in(name).unwrap_or(0));
    match pid_in(name) {
        Some(pid) if !name.starts_with(threads.as_bytes()) => remap(cx, id, pid as u32, RemapType::Procfs),
        _ => Err(Error::unsupported(
            subject.object.clone(),
            "it is a file of /proc that is no more",
            "close it before the checkpoint",
        )),
    }
}

fn write(cx: &Collect<'_>, subject: &Subject<'_>, ghost: u32) -> Result<()> {
    let stat = &subject.stat;
    let failed = |action: &'static str| move |e| Error::kernel(subject.object.clone(), action, e);
    let (uid, gid) = users::inside((stat.st_uid, stat.st_gid));
    let mut entry = GhostFileEntry {
        uid,
        gid,
        mode: stat.st_mode,
        dev: Some(kernel_dev(stat.st_dev)),
        ino: Some(stat.st_ino),
        atim: Some(Timeval { tv_sec: stat.st_atime as u64, tv_usec: stat.st_atime_nsec / 1000 }),
        mtim: Some(Timeval { tv_sec: stat.st_mtime as u64, tv_usec: stat.st_mtime_nsec / 1000 }),
        ..GhostFileEntry::default()
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            check_limit(cx, subject)?;
            entry.chunks = Some(true);
            entry.size = Some(stat.st_size as u64);
        }
        FileType::CharacterDevice | FileType::BlockDevice => entry.rdev = Some(stat.st_rdev as u32),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(subject.file, "", Vec::new()).map_err(failed("read the link"))?;
            entry.symlnk_target = Some(target.into_bytes());
        }
        _ => {}
    }
    let writer = cx.images.entry_file(ImageKind::GhostFile, u64::from(ghost))?;
    writer.append(&entry)?;
    if entry.chunks.is_some() {
        // Its own open file: looking for data moves the position.
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
        let file = reopen(subject.file, flags).map_err(failed("open it for reading"))?;
        write_chunks(&writer, &File::from(file), stat.st_size as u64, &subject.object)?;
    }
    Ok(())
}

/// A device number as the kernel has it inside.
fn kernel_dev(dev: u64) -> u32 {
    rustix::fs::major(dev) << 20 | rustix::fs::minor(dev)
}

fn check_limit(cx: &Collect<'_>, subject: &Subject<'_>) -> Result<()> {
    let size = subject.stat.st_blocks as u64 * 512;
    match cx.options.ghost_limit {
        Some(limit) if size > limit => Err(Error::unsupported(
            subject.object.clone(),
            format!("the deleted file occupies {size} bytes, more than the limit of {limit}"),
            "raise --ghost-limit",
        )),
        _ => Ok(()),
    }
}

/// Writes what is not holes.
fn write_chunks(writer: &EntryWriter, mut file: &File, size: u64, object: &Object) -> Result<()> {
    let mut at = 0;
    while at < size {
        let seek = |to| rustix::fs::seek(file, to);
        let data = match seek(SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(Error::kernel(object.clone(), "find its data", errno)),
        };
        let end = seek(SeekFrom::Hole(data)).map_err(|e| Error::kernel(object.clone(), "find its holes", e))?.min(size);
        if data >= end {
            break;
        }
        writer.append(&GhostChunkEntry { len: end - data, off: data })?;
        file.seek(std::io::SeekFrom::Start(data))
            .map_err(|e| Error::kernel(object.clone(), "read it", crate::error::errno_of(&e)))?;
        writer.append_from(file, end - data)?;
        at = end;
    }
    Ok(())
}

/// Gives a file that lives under other names one beside the path by which it
/// was opened, as what the record `id` stands for.
pub(super) fn link(cx: &mut Collect<'_>, subject: &Subject<'_>, id: u32, name: &[u8]) -> Result<()> {
    if !cx.options.link_remap {
        return Err(Error::unsupported(
            subject.object.clone(),
            "it was deleted under this path but has others, which cannot be found",
            "allow a temporary link beside it with --link-remap",
        ));
    }
    let key = (subject.stat.st_dev, subject.stat.st_ino);
    let linked = match cx.regular.ghosts.linked.get(&key) {
        Some(&linked) => linked,
        None => {
            let linked = cx.new_id();
            let mnt_id = cx.regular.mounts.recorded_id(subject)?;
            let path = make_link(cx, subject, name, linked)?;
            let reg = RegFileEntry {
                id: linked,
                flags: libc::O_RDONLY as u32,
                name: path,
                mnt_id: Some(mnt_id),
                mode: Some(subject.stat.st_mode),
                ..RegFileEntry::default()
            };
            let entry = FileEntry { r#type: FdTypes::Reg as i32, id: linked, reg: Some(reg), ..FileEntry::default() };
            cx.images.append(ImageKind::Files, None, &entry, None)?;
            cx.regular.ghosts.linked.insert(key, linked);
            linked
        }
    };
    remap(cx, id, linked, RemapType::Linked)
}

/// Lets the janitor know of a link that is about to be made.
fn note(cx: &Collect<'_>, parent: &OwnedFd, base: &str) {
    let Some(janitor) = cx.janitor else { return };
    let seen = rustix::fs::readlink(format!("/proc/self/fd/{}", parent.as_raw_fd()), Vec::new());
    let path = seen.ok().map(|parent| [parent.to_bytes(), b"/", base.as_bytes()].concat());
    if !path.and_then(|path| CString::new(path).ok()).is_some_and(|path| janitor.note(&path)) {
        tracing::debug!("nobody would remove {base} if we were killed");
    }
}

/// The directory that is above a path.
fn above(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|&b| b == b'/').unwrap_or(0)]
}

/// Makes the link, and returns its path as the process sees it.
fn make_link(cx: &mut Collect<'_>, subject: &Subject<'_>, name: &[u8], linked: u32) -> Result<Vec<u8>> {
    let mut directory = above(name);
    // It may have gone as well: any above it will do that is of the same mount.
    let parent = loop {
        let at = if directory.is_empty() { b"/" } else { directory };
        match cx.regular.mounts.open_as_seen(subject, at, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) if !directory.is_empty() => directory = above(directory),
            parent => break parent,
        }
    };
    let shown = String::from_utf8_lossy(directory).into_owned();
    let failed = |e| Error::kernel(subject.object.clone(), format!("make a temporary link in {shown}/"), e);
    let parent = parent.map_err(failed)?;
    let is_ours = cx.regular.mounts.id_of(subject.file) == Ok(-1);
    let source = format!("/proc/self/fd/{}", subject.file.as_raw_fd());
    let _owner = users::own_files().map_err(failed)?;
    for attempt in 0..64u32 {
        let base = format!("link_remap.{}", linked + attempt * 1000);
        match rustix::fs::statat(&parent, &*base, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // Before it is there: whenever we are killed, it goes. If another makes this name in the same moment, we end
        // without having been killed.
        // Whoever removes it sees our file systems.
        if is_ours {
            note(cx, &parent, &base);
        }
        rustix::fs::linkat(CWD, &*source, &parent, &*base, AtFlags::SYMLINK_FOLLOW).map_err(failed)?;
        let path = [directory, b"/", base.as_bytes()].concat();
        cx.regular.ghosts.links.0.push((parent, base));
        return Ok(path);
    }
    Err(failed(Errno::EXIST))
}
