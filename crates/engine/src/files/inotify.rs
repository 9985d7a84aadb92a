//! Watches of files and directories (inotify(7)), under the numbers they have.
//!
//! A watched file that has been deleted while somebody has it open is a ghost
//! like any other; which watches are of such files is kept in
//! `cryonaut-inotify-FILE.json`, file ids by number of the watch.
//!
//! Events that were not read yet cannot be put back; the log says how many
//! bytes of them are lost.

use super::watched::{self, Watched};
use super::{Build, Collect, FileKind, OpenFile, Round, apply_status_flags, regular};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, InotifyFileEntry, InotifyWdEntry};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::fdinfo::{Details, InotifyWatch};
use cryonaut_kernel::sys::inotify::set_next_watch;
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Watches of files and directories.
#[derive(Debug)]
pub struct Inotify;

/// Bits of a mask that can be asked for: events, `IN_EXCL_UNLINK`, `IN_ONESHOT`.
/// Kernels have shown others too.
const ASKED: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

/// Numbers to go through where the kernel cannot be told the next.
const TRIES_MAX: u32 = 1 << 20;

impl FileKind for Inotify {
    fn name(&self) -> &'static str {
        "inotify"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Inotify
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        file.anon_inode() == Some(b"inotify")
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let watches = match &file.info.details {
            Details::Inotify(watches) => watches.as_slice(),
            Details::None => &[],
            _ => return Err(file.unexpected(self.name())),
        };
        let unread = rustix::io::ioctl_fionread(file.file)
            .map_err(|e| Error::kernel(file.object(), "see whether there are unread events", e))?;
        if unread > 0 {
            tracing::warn!("{}: {unread} bytes of unread events cannot be put back and will be missing", file.object());
        }
        let mut ghosts = Ghosts::new();
        let wd = watches.iter().map(|watch| record(cx, file, id, watch, &mut ghosts)).collect::<Result<_>>()?;
        if !ghosts.is_empty() {
            cx.images.write_json(&name_of(id), &ghosts)?;
        }
        let ify = InotifyFileEntry { id, flags: file.flags(), fown: file.owner()?, wd };
        Ok(FileEntry { r#type: FdTypes::Inotify as i32, id, ify: Some(ify), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let ify = entry.ify.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let file = rustix::fs::inotify::init(CreateFlags::CLOEXEC).map_err(|errno| Error::Kernel {
            object: Object::File(entry.id, "inotify".into()),
            action: "make an inotify".into(),
            errno,
            remedy: if errno == Errno::MFILE { "raise /proc/sys/fs/inotify/max_user_instances" } else { "" },
        })?;
        let ghosts: Ghosts = cx.images.read_json(&name_of(entry.id))?.unwrap_or_default();
        let mut watches: Vec<&InotifyWdEntry> = ify.wd.iter().collect();
        // The next new watch then gets a number that was not in use.
        watches.sort_by_key(|watch| watch.wd);
        // All are opened before the first is watched: making a deleted one again would be an event in its directory.
        let mut targets = Vec::with_capacity(watches.len());
        for watch in &watches {
            targets.push(match ghosts.get(&watch.wd) {
                Some(&ghost) => cx.file(ghost)?.try_clone_to_owned().map_err(|e| {
                    let object = Object::File(entry.id, "inotify".into());
                    Error::kernel(object, "duplicate what it watches", crate::error::errno_of(&e))
                })?,
                None => watched::open(cx, entry.id, watch.s_dev, watch.i_ino, &watch.f_handle)?,
            });
        }
        for (watch, target) in watches.into_iter().zip(&targets) {
            add(&file, watch, target)?;
        }
        apply_status_flags(file.as_fd(), entry.id, ify.flags)?;
        Ok(file)
    }

    fn round(&self, _entry: &FileEntry) -> Round {
        Round::Watchers
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.ify.as_ref().map(|ify| &ify.fown)
    }
}

/// File ids of deleted files, by the numbers of their watches.
type Ghosts = BTreeMap<u32, u32>;

fn name_of(id: u32) -> String {
    format!("inotify-{id}")
}

fn record(
    cx: &mut Collect<'_>,
    file: &OpenFile<'_>,
    id: u32,
    watch: &InotifyWatch,
    ghosts: &mut Ghosts,
) -> Result<InotifyWdEntry> {
    let watched = Watched { sdev: watch.sdev, ino: watch.ino, handle: watch.handle.as_ref() };
    let wd = watch.wd as u32;
    let found = match watched.find(file.task)? {
        None => elsewhere(cx, &watched, file.task)?,
        found => found,
    };
    let deleted = found.as_ref().and_then(|found| Some((found, watched.deleted(found)?)));
    let f_handle = match deleted {
        Some((deleted, (handle, link)))
            if let Some(ghost) = regular::collect_watched(cx, file.task, deleted, &link, file.object())? =>
        {
            ghosts.insert(wd, ghost);
            handle
        }
        _ => watched.record_found(found, &file.object())?,
    };
    Ok(InotifyWdEntry { id, i_ino: watch.ino, mask: watch.mask, ignored_mask: 0, s_dev: watch.sdev, wd, f_handle })
}

/// Looks for a file in the mount namespaces of the rest of the tree.
fn elsewhere(cx: &Collect<'_>, watched: &Watched<'_>, task: &Task) -> Result<Option<OwnedFd>> {
    let mut seen = vec![task.link("ns/mnt")?];
    for pid in cx.pids {
        let Ok(task) = Task::open(pid_of(cx.speaker(*pid))?) else { continue };
        let Ok(namespace) = task.link("ns/mnt") else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        if let Some(found) = watched.find(&task)? {
            return Ok(Some(found));
        }
        seen.push(namespace);
    }
    Ok(None)
}

/// Adds a watch under its number. Numbers are given in turn.
fn add(file: &OwnedFd, watch: &InotifyWdEntry, target: &OwnedFd) -> Result<()> {
    let failed = |errno| Error::Kernel {
        object: Object::File(watch.id, "inotify".into()),
        action: format!("add watch {}", watch.wd),
        errno,
        remedy: if errno == Errno::NOSPC { "raise /proc/sys/fs/inotify/max_user_watches" } else { "" },
    };
    let wanted = watch.wd as i32;
    let flags = WatchFlags::from_bits_retain(watch.mask & ASKED);
    // Old kernels give the numbers in turn; then the loop gets there.
    let _ = set_next_watch(file, wanted);
    let mut tries = 0;
    loop {
        let got = rustix::fs::inotify::add_watch(file, watched::way_to(target), flags).map_err(failed)?;
        if got == wanted {
            return Ok(());
        }
        rustix::fs::inotify::remove_watch(file, got).map_err(failed)?;
        drain(file).map_err(failed)?;
        tries += 1;
        if got > wanted || tries > TRIES_MAX {
            return Err(failed(Errno::EXIST));
        }
    }
}

/// Takes out the event that tells of a removed watch.
fn drain(file: &OwnedFd) -> std::result::Result<(), Errno> {
    let mut event = [0; 4096];
    if rustix::io::ioctl_fionread(file)? > 0 {
        rustix::io::read(file, &mut event)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use cryonaut_kernel::proc::Task;
    use std::os::fd::AsRawFd;

    #[test]
    fn watches_come_back_under_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        std::fs::write(&target, b"x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let file = rustix::fs::inotify::init(CreateFlags::NONBLOCK).unwrap();
        let add = |path: &std::path::Path, flags| rustix::fs::inotify::add_watch(&file, path, flags).unwrap();
        let gone = add(&target, WatchFlags::MODIFY);
        rustix::fs::inotify::remove_watch(&file, gone).unwrap();
        drain(&file).unwrap();
        add(dir.path(), WatchFlags::CREATE | WatchFlags::EXCL_UNLINK);
        add(&target, WatchFlags::MODIFY | WatchFlags::ONESHOT);
        add(&link, WatchFlags::ATTRIB | WatchFlags::DONT_FOLLOW);
        let carried = Carried::collect(&[&file]).build(RestoreOptions::default());
        let details = |fd: &OwnedFd| Task::current().unwrap().fdinfo(fd.as_raw_fd()).unwrap();
        assert_eq!(details(carried.file(0)).details, details(&file).details);
        let cloexec = libc::O_CLOEXEC as u32;
        assert_eq!(details(carried.file(0)).flags, details(&file).flags | cloexec);
        std::fs::write(dir.path().join("new"), b"").unwrap();
        let mut event = [0; 256];
        let n = rustix::io::read(carried.file(0), &mut event).unwrap();
        assert_eq!((i32::from_ne_bytes(event[..4].try_into().unwrap()), n), (2, 32));
    }
}
