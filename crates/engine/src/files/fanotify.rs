//! Groups of marks on inodes, mounts and file systems (fanotify(7)).
//!
//! Events that were not read yet cannot be put back; the log says so. CRIU's
//! format knows marks of inodes and mounts; one of a whole file system is
//! recorded as that of a mount of it, with `FAN_MARK_FILESYSTEM` in its flags.

use super::watched::{self, Watched};
use super::{Build, Collect, FileKind, OpenFile, Round, apply_status_flags, regular_path};
use crate::{Error, Object, Result};
use cryonaut_image::records::{
    FanotifyFileEntry, FanotifyInodeMarkEntry, FanotifyMarkEntry, FanotifyMountMarkEntry, FdTypes, FileEntry,
    FownEntry, MarkType, RegFileEntry,
};
use cryonaut_kernel::proc::fdinfo::{Details, FanotifyMark, FanotifyObject, split_sdev};
use cryonaut_kernel::proc::mountinfo::MountInfo;
use cryonaut_kernel::sys::fanotify;
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Groups of marks.
#[derive(Debug)]
pub struct Fanotify;

// Flags of fanotify_mark(2).
const ADD: u32 = 0x1;
const MOUNT: u32 = 0x10;
const IGNORED_MASK: u32 = 0x20;
const SURV_MODIFY: u32 = 0x40;
const FILESYSTEM: u32 = 0x100;
const EVICTABLE: u32 = 0x200;
const IGNORE: u32 = 0x400;

impl FileKind for Fanotify {
    fn name(&self) -> &'static str {
        "fanotify"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Fanotify
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        matches!(file.info.details, Details::Fanotify { .. }) || file.anon_inode() == Some(b"fanotify")
    }

    fn collect(&self, _cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let Details::Fanotify { flags, event_flags, marks } = &file.info.details else {
            return Err(file.unexpected(self.name()));
        };
        let unread = rustix::io::ioctl_fionread(file.file)
            .map_err(|e| Error::kernel(file.object(), "see whether there are unread events", e))?;
        if unread > 0 {
            tracing::warn!("{}: {unread} bytes of unread events cannot be put back and will be missing", file.object());
        }
        let mounts = file.task.mountinfo()?;
        let mark = marks.iter().map(|mark| record(file, id, mark, &mounts)).collect::<Result<_>>()?;
        let (faflags, evflags) = (*flags, *event_flags);
        let ffy = FanotifyFileEntry { id, flags: file.flags(), fown: file.owner()?, faflags, evflags, mark };
        Ok(FileEntry { r#type: FdTypes::Fanotify as i32, id, ffy: Some(ffy), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let ffy = entry.ffy.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        // The group remembers even the flags that went to its descriptor.
        let file =
            fanotify::init(ffy.faflags, ffy.evflags).map_err(|e| failed(entry.id, "make a fanotify group", e))?;
        rustix::io::fcntl_setfd(&file, FdFlags::CLOEXEC).map_err(|e| failed(entry.id, "mark it close-on-exec", e))?;
        for mark in &ffy.mark {
            add(cx, &file, entry.id, mark)?;
        }
        apply_status_flags(file.as_fd(), entry.id, ffy.flags)?;
        Ok(file)
    }

    fn round(&self, _entry: &FileEntry) -> Round {
        Round::Watchers
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.ffy.as_ref().map(|ffy| &ffy.fown)
    }
}

fn failed(id: u32, action: &str, errno: Errno) -> Error {
    Error::kernel(Object::File(id, "fanotify".into()), action, errno)
}

fn record(file: &OpenFile<'_>, id: u32, mark: &FanotifyMark, mounts: &[MountInfo]) -> Result<FanotifyMarkEntry> {
    let mut entry = FanotifyMarkEntry {
        id,
        r#type: MarkType::Mount as i32,
        mflags: mark.flags,
        mask: mark.mask as u32,
        ignored_mask: mark.ignored_mask as u32,
        ..FanotifyMarkEntry::default()
    };
    let on_mount = |wanted: &dyn Fn(&MountInfo) -> bool, what: String| {
        let mount = mounts.iter().find(|mount| wanted(mount)).ok_or_else(|| {
            Error::unsupported(
                file.object(),
                format!("it has a mark on {what}, which its process cannot reach"),
                "let the workload remove the mark before the checkpoint",
            )
        })?;
        let path = mount.mount_point.as_os_str().as_bytes().to_vec();
        Ok::<_, Error>(Some(FanotifyMountMarkEntry { mnt_id: mount.id as u32, path: Some(path) }))
    };
    match &mark.object {
        FanotifyObject::Inode { ino, sdev, handle } => {
            let watched = Watched { sdev: *sdev, ino: *ino, handle: handle.as_ref() };
            entry.r#type = MarkType::Inode as i32;
            entry.s_dev = *sdev;
            let f_handle = watched.record(file.task, &file.object())?;
            entry.ie = Some(FanotifyInodeMarkEntry { i_ino: *ino, f_handle });
        }
        FanotifyObject::Mount { mnt_id } => {
            entry.me = on_mount(&|mount| mount.id == *mnt_id, format!("mount {mnt_id}"))?;
        }
        FanotifyObject::FileSystem { sdev } => {
            entry.s_dev = *sdev;
            entry.mflags |= FILESYSTEM;
            entry.me = on_mount(&|mount| mount.dev == split_sdev(*sdev), format!("device {sdev:#x}"))?;
        }
    }
    Ok(entry)
}

/// Puts a mark on its object again: what it is for, then what it ignores.
fn add(cx: &mut Build<'_>, group: &OwnedFd, id: u32, mark: &FanotifyMarkEntry) -> Result<()> {
    let (target, kind) = match (&mark.ie, &mark.me) {
        (Some(inode), _) => (watched::open(cx, id, mark.s_dev, inode.i_ino, &inode.f_handle)?, 0),
        (None, Some(mount)) => {
            let name = mount.path.clone().ok_or_else(|| {
                let reason = format!("the image has no path of mount {}, on which it has a mark", mount.mnt_id);
                Error::unsupported(Object::File(id, "fanotify".into()), reason, "")
            })?;
            let mnt_id = Some(mount.mnt_id.cast_signed());
            let path = RegFileEntry { id, flags: OFlags::PATH.bits(), name, mnt_id, ..RegFileEntry::default() };
            (regular_path::open_recorded(cx, &path)?, if mark.mflags & FILESYSTEM != 0 { FILESYSTEM } else { MOUNT })
        }
        (None, None) => {
            return Err(Error::bad_image("files.img", format!("a mark of fanotify {id:#x} is on nothing")));
        }
    };
    let path = CString::new(watched::way_to(&target)).unwrap_or_default();
    let kind = kind | (mark.mflags & EVICTABLE);
    let put = |flags: u32, mask: u32| {
        fanotify::mark(group, ADD | kind | flags, u64::from(mask), group, Some(&path))
            .map_err(|e| failed(id, &format!("put a mark ({mask:#x}) on {}", describe(mark)), e))
    };
    if mark.mask != 0 {
        put(0, mark.mask)?;
    }
    if mark.ignored_mask != 0 {
        let how = if mark.mflags & IGNORE != 0 { IGNORE } else { IGNORED_MASK };
        put(how | (mark.mflags & SURV_MODIFY), mark.ignored_mask)?;
    }
    Ok(())
}

fn describe(mark: &FanotifyMarkEntry) -> String {
    let inode_path = mark.ie.as_ref().and_then(|inode| inode.f_handle.path.as_ref());
    let path = inode_path.or_else(|| mark.me.as_ref().and_then(|mount| mount.path.as_ref()));
    path.map_or_else(|| "an inode".into(), |path| String::from_utf8_lossy(path).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use cryonaut_kernel::proc::Task;
    use std::os::fd::AsRawFd;

    const FAN_NONBLOCK: u32 = 2;
    const FAN_CLOEXEC: u32 = 1;
    const FAN_MODIFY: u64 = 2;
    const FAN_OPEN: u64 = 0x20;
    const FAN_CLOSE_WRITE: u64 = 8;

    #[test]
    fn marks_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        std::fs::write(&target, b"x").unwrap();
        let group = match fanotify::init(FAN_CLOEXEC | FAN_NONBLOCK, libc::O_RDONLY as u32) {
            // A kernel without CONFIG_FANOTIFY has nothing to carry.
            Err(Errno::NOSYS) => return,
            made => made.unwrap(),
        };
        let path = CString::new(target.as_os_str().as_bytes()).unwrap();
        fanotify::mark(&group, ADD, FAN_MODIFY | FAN_OPEN, &group, Some(&path)).unwrap();
        fanotify::mark(&group, ADD | IGNORED_MASK | SURV_MODIFY, FAN_CLOSE_WRITE, &group, Some(&path)).unwrap();
        fanotify::mark(&group, ADD | MOUNT, FAN_CLOSE_WRITE, &group, Some(c"/proc")).unwrap();
        fanotify::mark(&group, ADD | FILESYSTEM, FAN_CLOSE_WRITE, &group, Some(c"/dev")).unwrap();
        let carried = Carried::collect(&[&group]).build(RestoreOptions::default());
        let told = |fd: &OwnedFd| match Task::current().unwrap().fdinfo(fd.as_raw_fd()).unwrap().details {
            Details::Fanotify { flags, event_flags, marks } => {
                let mut marks: Vec<_> = marks.into_iter().map(|mark| format!("{mark:?}")).collect();
                marks.sort();
                (flags & !FAN_NONBLOCK, event_flags, marks)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(told(&group).2.len(), 3);
        assert_eq!(told(carried.file(0)), told(&group));
    }
}
