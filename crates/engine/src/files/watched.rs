//! Files that inotify and fanotify watch: the kernel tells them by inode and
//! handle, the image wants a path.
//!
//! A handle leads to its file on most file systems. Where it does not
//! (overlayfs cannot decode its own handles), the mount is searched for a file
//! with the same one.

use super::{Build, regular_path};
use crate::{Error, Object, Result};
use cryonaut_image::records::{FhEntry, RegFileEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::fdinfo::split_sdev;
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::sys::handle::{FileHandle, name_to_handle_at, open_by_handle_at};
use cryonaut_kernel::sys::mount;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

/// `AT_HANDLE_FID` (Linux 6.5): a handle to compare by, of file systems too
/// that could not open it.
const HANDLE_FID: AtFlags = AtFlags::from_bits_retain(0x200);

/// Words of a handle in CRIU's records; it reads that many.
const HANDLE_WORDS: usize = 16;

/// Most directory entries to look at for one file.
const SEARCH_MAX: usize = 500_000;

/// A file as the kernel tells it in fdinfo.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched<'a> {
    pub sdev: u32,
    pub ino: u64,
    pub handle: Option<&'a FileHandle>,
}

impl Watched<'_> {
    /// Whether this open file (which may be `O_PATH`) is the one.
    fn is(&self, file: BorrowedFd<'_>) -> bool {
        let same_inode = rustix::fs::fstat(file).is_ok_and(|stat| stat.st_ino == self.ino);
        let Some(wanted) = self.handle else {
            return same_inode;
        };
        let told = name_to_handle_at(file, c"", AtFlags::EMPTY_PATH | HANDLE_FID)
            .or_else(|_| name_to_handle_at(file, c"", AtFlags::EMPTY_PATH));
        told.map_or(same_inode, |(handle, _)| handle == *wanted)
    }

    /// The record of it, with its path as seen by `task`.
    pub fn record(&self, task: &Task, object: &Object) -> Result<FhEntry> {
        self.record_found(self.find(task)?, object)
    }

    /// The same, when it has been looked for.
    pub fn record_found(&self, found: Option<OwnedFd>, object: &Object) -> Result<FhEntry> {
        let mount = found.as_ref().and_then(|found| mount::id_of(found.as_fd()).ok());
        let path = self.path(found, object)?;
        Ok(FhEntry { mnt_id: mount.map(i32::cast_unsigned), ..self.with_path(path) })
    }

    /// If what was found has been deleted under a name that is known: its
    /// record, and the link that the kernel shows for it.
    pub fn deleted(&self, found: &OwnedFd) -> Option<(FhEntry, Vec<u8>)> {
        let link = link_of(found).ok()?.into_os_string().into_vec();
        let gone = rustix::fs::fstat(found).is_ok_and(|stat| stat.st_nlink == 0);
        let name = link.strip_suffix(b" (deleted)").filter(|_| gone)?;
        Some((self.with_path(OsString::from_vec(name.to_vec()).into()), link))
    }

    fn with_path(&self, path: PathBuf) -> FhEntry {
        let bytes = self.handle.map_or(&[][..], |handle| &handle.bytes);
        let mut padded = bytes.to_vec();
        padded.resize(HANDLE_WORDS * 8, 0);
        FhEntry {
            bytes: bytes.len() as u32,
            r#type: self.handle.map_or(0, |handle| handle.kind as u32),
            handle: padded.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default())).collect(),
            path: Some(path.into_os_string().into_vec()),
            mnt_id: None,
        }
    }

    fn path(&self, found: Option<OwnedFd>, object: &Object) -> Result<PathBuf> {
        let file = found.ok_or_else(|| {
            Error::unsupported(
                object.clone(),
                format!("no path was found of inode {} of device {:#x}, which it watches", self.ino, self.sdev),
                "let the workload remove the watch before the checkpoint",
            )
        })?;
        let failed = |e| Error::kernel(object.clone(), "find the path of a file that it watches", e);
        let path = link_of(&file).map_err(failed)?;
        if rustix::fs::fstat(&file).map_err(failed)?.st_nlink == 0
            || path.as_os_str().as_bytes().ends_with(b"//deleted")
        {
            return Err(Error::unsupported(
                object.clone(),
                format!("it watches {}, which has been deleted", path.display()),
                "let the workload remove the watch before the checkpoint",
            ));
        }
        Ok(path)
    }

    /// An `O_PATH` descriptor of it, reached through the mounts of `task`.
    pub fn find(&self, task: &Task) -> Result<Option<OwnedFd>> {
        let root = task.open_file("root", OFlags::PATH | OFlags::DIRECTORY)?;
        let mounts: Vec<MountInfo> =
            task.mountinfo()?.into_iter().filter(|mount| mount.dev == split_sdev(self.sdev)).collect();
        let open = |path: &Path, flags: OFlags| {
            rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
        };
        // Opening for real is an event to those who watch the mount's root: not if it is the one.
        for mount in &mounts {
            match open(&mount.mount_point, OFlags::PATH) {
                Ok(top) if self.is(top.as_fd()) => return Ok(Some(top)),
                _ => {}
            }
        }
        for mount in &mounts {
            let Some(handle) = self.handle else { break };
            let anchor = open(&mount.mount_point, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
            let found = anchor.and_then(|anchor| open_by_handle_at(&anchor, handle, OFlags::PATH | OFlags::CLOEXEC));
            if let Ok(file) = found
                && self.has_a_path(&file, &root)
            {
                return Ok(Some(file));
            }
        }
        for mount in &mounts {
            if let Some(file) = self.search(task, mount, &root) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Whether the path that the kernel shows for a file leads to it: it does
    /// not through a mount of another part of the file system, nor while the
    /// kernel does not know the file's directory. Deleted ones pass.
    fn has_a_path(&self, file: &OwnedFd, root: &OwnedFd) -> bool {
        if rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0) {
            return true;
        }
        let Ok(path) = link_of(file) else {
            return false;
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let as_seen_by_it = rustix::fs::openat2(root, &path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let as_seen_by_us = || rustix::fs::openat(CWD, &path, flags, Mode::empty());
        as_seen_by_it.is_ok_and(|f| self.is(f.as_fd())) || as_seen_by_us().is_ok_and(|f| self.is(f.as_fd()))
    }

    /// Looks for it below a mount point, breadth first.
    fn search(&self, task: &Task, mount: &MountInfo, root: &OwnedFd) -> Option<OwnedFd> {
        let top = format!("/proc/self/fd/{}", root.as_raw_fd());
        let below = mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point);
        tracing::debug!("searching {} ({}) for inode {}", mount.mount_point.display(), task.path(), self.ino);
        // Overlayfs lists the numbers of the layers' inodes, not its own.
        let numbers_lie = mount.fs_type == b"overlay";
        let mut queue = VecDeque::from([Path::new(&top).join(below)]);
        let mut looked_at = 0;
        let device = |path: &Path| rustix::fs::lstat(path).map(|stat| stat.st_dev);
        let home = device(&queue[0].join(".")).ok()?;
        while let Some(directory) = queue.pop_front() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                looked_at += 1;
                if looked_at > SEARCH_MAX {
                    return None;
                }
                let path = entry.path();
                if (numbers_lie || entry.ino() == self.ino)
                    && let Ok(file) =
                        rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                    && self.is(file.as_fd())
                {
                    return Some(file);
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && device(&path) == Ok(home) {
                    queue.push_back(path);
                }
            }
        }
        None
    }
}

fn link_of(file: &OwnedFd) -> std::result::Result<PathBuf, Errno> {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
}

/// Opens (`O_PATH`) the file of a record: by its path, or where there is none,
/// as in some of CRIU's, by its handle.
pub(super) fn open(cx: &mut Build<'_>, id: u32, sdev: u32, ino: u64, record: &FhEntry) -> Result<OwnedFd> {
    if let Some(path) = &record.path {
        let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits();
        let mnt_id = record.mnt_id.map(u32::cast_signed);
        let reg = RegFileEntry { id, flags, name: path.clone(), mnt_id, ..RegFileEntry::default() };
        return regular_path::open_recorded(cx, &reg);
    }
    let mut bytes: Vec<u8> = record.handle.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(record.bytes as usize);
    let handle = FileHandle { kind: record.r#type as i32, bytes };
    let watched = Watched { sdev, ino, handle: (!handle.bytes.is_empty()).then_some(&handle) };
    watched.find(&Task::current()?)?.ok_or_else(|| {
        Error::unsupported(
            Object::File(id, format!("watch of inode {ino} of device {sdev:#x}")),
            "the image has no path of it, and its handle leads nowhere here",
            "restore where the image was made",
        )
    })
}

/// A path by which calls that want one reach an `O_PATH` descriptor.
pub(super) fn way_to(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_by_handle_and_by_search() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let path = dir.path().join("a/b/file");
        std::fs::write(&path, b"x").unwrap();
        let file: OwnedFd = std::fs::File::open(&path).unwrap().into();
        let stat = rustix::fs::fstat(&file).unwrap();
        let sdev = rustix::fs::major(stat.st_dev) << 20 | rustix::fs::minor(stat.st_dev);
        let (handle, _) = name_to_handle_at(&file, c"", AtFlags::EMPTY_PATH).unwrap();
        let watched = Watched { sdev, ino: stat.st_ino, handle: Some(&handle) };
        let task = Task::current().unwrap();
        let object = Object::Other("test".into());
        assert_eq!(watched.path(watched.find(&task).unwrap(), &object).unwrap(), path);
        let mount = MountInfo { mount_point: dir.path().into(), ..task.mountinfo().unwrap()[0].clone() };
        let root = task.open_file("root", OFlags::PATH).unwrap();
        let found = Watched { handle: None, ..watched }.search(&task, &mount, &root).unwrap();
        assert_eq!(link_of(&found).unwrap(), path);
        std::fs::remove_file(&path).unwrap();
        let error = watched.path(watched.find(&task).unwrap(), &object).unwrap_err();
        assert!(error.to_string().contains("deleted"), "{error}");
    }
}
