//! Paths as a process sees them: whether one still leads to the file that the
//! process has, and opening it again at restore.

use super::regular::is_path_only;
use super::{Build, Collect, ghost};
use crate::{Error, Object, Result};
use cryonaut_image::records::RegFileEntry;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::mount;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file with a path, found through a descriptor or another link of /proc.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    /// For messages.
    pub object: Object,
    /// The process that has it.
    pub task: &'a Task,
    /// Our descriptor of it; may be `O_PATH`.
    pub file: BorrowedFd<'a>,
    /// `fstat` of it.
    pub stat: Stat,
    /// The path that the kernel shows for it.
    pub link: &'a [u8],
    /// With which it is to be opened.
    pub flags: u32,
}

/// Where the path of an open file leads.
#[derive(Debug, PartialEq, Eq)]
enum Leads {
    ToIt,
    Nowhere,
    Elsewhere,
}

const DELETED: &[u8] = b" (deleted)";

/// The path to record for a file. If it does not lead to the file, the file is
/// carried as a ghost or given a temporary link, as what `id` stands for.
pub(super) fn recorded_name(cx: &mut Collect<'_>, subject: &Subject<'_>, id: u32) -> Result<Vec<u8>> {
    if cx.regular.mounts.is_outside(subject) {
        return Ok(subject.link.to_vec());
    }
    let leads = where_leads(&mut cx.regular.mounts, subject)?;
    if leads == Leads::ToIt || cx.regular.mounts.hides(subject) {
        return Ok(subject.link.to_vec());
    }
    let name = subject.link.strip_suffix(DELETED).unwrap_or(subject.link);
    let kind = FileType::from_raw_mode(subject.stat.st_mode);
    if is_procfs(subject) {
        ghost::stand_for_dead(cx, subject, id, name)?;
        return Ok(name.to_vec());
    }
    // Not every file system counts the links of directories down to zero.
    let removed_directory = kind == FileType::Directory && leads == Leads::Nowhere;
    if subject.stat.st_nlink == 0 || removed_directory {
        ghost::carry(cx, subject, id)?;
    } else {
        ghost::link(cx, subject, id, name)?;
    }
    Ok(name.to_vec())
}

fn is_procfs(subject: &Subject<'_>) -> bool {
    rustix::fs::fstatfs(subject.file).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC)
}

fn where_leads(mounts: &mut Mounts, subject: &Subject<'_>) -> Result<Leads> {
    match mounts.stat_as_seen(subject) {
        // /proc may give its files other inodes whenever it likes, but not those of a process: another inode there is
        // another process.
        Ok(found)
            if found.st_dev == subject.stat.st_dev
                && (found.st_ino == subject.stat.st_ino
                    || pid_in(subject.link).is_none()
                        && found.st_mode & libc::S_IFMT == subject.stat.st_mode & libc::S_IFMT
                        && is_procfs(subject)) =>
        {
            Ok(Leads::ToIt)
        }
        Ok(_) => Ok(Leads::Elsewhere),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Leads::Nowhere),
        Err(errno) => Err(Error::kernel(subject.object.clone(), "look up its path", errno)),
    }
}

/// The pid in a path below /proc.
pub(super) fn pid_in(path: &[u8]) -> Option<i32> {
    let rest = path.strip_prefix(b"/proc/")?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// What file systems a process sees.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// Ours.
    Ours,
    /// Those below the root of a mount namespace of the tree.
    Below(Arc<OwnedFd>),
}

/// Who sees the file systems that we see: told, or found out once for each process.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Our mount namespace.
    ours: Option<u64>,
    /// By the directory in /proc.
    known: HashMap<String, Seen>,
    /// The mounts of the tree's own namespaces, with the root of the namespace of each.
    pub(super) of_tree: BTreeMap<i32, Arc<OwnedFd>>,
}

impl Mounts {
    /// Takes note of what a process sees.
    pub(super) fn tell(&mut self, task: &Task, seen: Seen) {
        self.known.insert(task.path().to_owned(), seen);
    }

    /// Whether a path that the kernel showed us for a file leads to that very file in our own mount namespace.
    pub(super) fn lead_to(path: &[u8], stat: &Stat) -> bool {
        let found = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
    }

    fn seen_by(&mut self, task: &Task) -> std::result::Result<Seen, Errno> {
        if let Some(known) = self.known.get(task.path()) {
            return Ok(known.clone());
        }
        let ours = match self.ours {
            Some(ours) => ours,
            None => rustix::fs::stat("/proc/self/ns/mnt")?.st_ino,
        };
        self.ours = Some(ours);
        let seen = if rustix::fs::statat(task.dir(), "ns/mnt", AtFlags::empty())?.st_ino == ours {
            Seen::Ours
        } else {
            let root = rustix::fs::openat(task.dir(), "root", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            Seen::Below(Arc::new(root))
        };
        self.known.insert(task.path().to_owned(), seen.clone());
        Ok(seen)
    }

    /// Whether a process sees other file systems than we do.
    pub(super) fn are_others(&mut self, task: &Task) -> bool {
        matches!(self.seen_by(task), Ok(Seen::Below(_)))
    }

    /// Where the path of a file leads that the kernel showed us: it begins at the root of the namespace of its mount.
    fn seen_of(&mut self, subject: &Subject<'_>) -> std::result::Result<Seen, Errno> {
        if self.of_tree.is_empty() {
            return self.seen_by(subject.task);
        }
        let id = mount::id_of(subject.file)?;
        Ok(self.of_tree.get(&id).map_or(Seen::Ours, |root| Seen::Below(root.clone())))
    }

    /// The mount of a file below a process's directory in /proc; -1 if its path is one of ours.
    pub(super) fn id_at(&mut self, task: &Task, link: &str) -> std::result::Result<i32, Errno> {
        if self.of_tree.is_empty() {
            return Ok(-1);
        }
        let link = CString::new(link).map_err(|_| Errno::INVAL)?;
        let id = mount::id_at(task.dir(), &link, AtFlags::empty())?;
        Ok(if self.of_tree.contains_key(&id) || self.are_others(task) { id } else { -1 })
    }

    /// The mount of an open file, if it is one of the tree's own namespaces; else -1.
    pub(super) fn id_of(&self, file: BorrowedFd<'_>) -> std::result::Result<i32, Errno> {
        if self.of_tree.is_empty() {
            return Ok(-1);
        }
        mount::id_of(file).map(|id| if self.of_tree.contains_key(&id) { id } else { -1 })
    }

    /// A number for the file systems that a process sees: 0 for ours.
    pub(super) fn whose(&mut self, task: &Task) -> usize {
        match self.seen_by(task) {
            Ok(Seen::Below(root)) => Arc::as_ptr(&root) as usize,
            _ => 0,
        }
    }

    /// Opens a path that the kernel showed us for a file, or one above it, without following a link at its end.
    pub(super) fn open_as_seen(
        &mut self,
        subject: &Subject<'_>,
        path: &[u8],
        flags: OFlags,
    ) -> std::result::Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.seen_of(subject)? {
            Seen::Ours => rustix::fs::openat(CWD, path, flags, Mode::empty()),
            Seen::Below(root) => rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT),
        }
    }

    /// `fstat` of what the path of a file leads to.
    fn stat_as_seen(&mut self, subject: &Subject<'_>) -> std::result::Result<Stat, Errno> {
        if matches!(self.seen_of(subject)?, Seen::Ours) {
            // One call instead of three.
            return rustix::fs::statat(CWD, subject.link, AtFlags::SYMLINK_NOFOLLOW);
        }
        self.open_as_seen(subject, subject.link, OFlags::PATH).and_then(rustix::fs::fstat)
    }

    /// What to record for the mount of a file of the process: its id, or -1 if the path is one of ours.
    ///
    /// A file of a mount that stands nowhere in the tree's namespaces is one from outside, if we see it by its path.
    pub(super) fn recorded_id(&mut self, subject: &Subject<'_>) -> Result<i32> {
        let failed = |e| Error::kernel(subject.object.clone(), "ask for its mount", e);
        let id = self.id_of(subject.file).map_err(failed)?;
        if id >= 0 || !self.are_others(subject.task) || Self::lead_to(subject.link, &subject.stat) {
            return Ok(id);
        }
        Err(Error::unsupported(
            subject.object.clone(),
            "its mount stands neither in the mount namespaces of the tree nor in ours",
            "let the program close it before the checkpoint",
        ))
    }

    /// Whether a file of a process that sees other file systems than we do is one of ours.
    fn is_outside(&mut self, subject: &Subject<'_>) -> bool {
        self.are_others(subject.task) && self.id_of(subject.file) == Ok(-1)
    }

    /// Whether a file is hidden where its path leads, by something that is mounted over it.
    fn hides(&mut self, subject: &Subject<'_>) -> bool {
        let Ok(own @ 0..) = self.id_of(subject.file) else { return false };
        if subject.stat.st_nlink == 0 || subject.link.ends_with(DELETED) || is_procfs(subject) {
            return false;
        }
        match self.open_as_seen(subject, subject.link, OFlags::PATH) {
            Ok(found) => mount::id_of(found.as_fd()).is_ok_and(|id| id != own),
            Err(errno) => matches!(errno, Errno::NOENT | Errno::NOTDIR),
        }
    }
}

/// Opens a recorded file with its flags. Never waits, for a device or a lease.
pub(super) fn open_recorded(cx: &mut Build<'_>, reg: &RegFileEntry) -> Result<OwnedFd> {
    let object = || object_of(reg);
    let flags = open_flags(reg);
    if let Some(ghost) = ghost::source(cx, reg)? {
        if let Some(original) = ghost::original(cx, reg.id) {
            return Ok(original);
        }
        return reopen(ghost.as_fd(), flags).map_err(|e| Error::kernel(object(), "open it again", e));
    }
    let failed = |errno| Error::Kernel {
        object: object(),
        action: "open it".into(),
        errno,
        remedy: match errno {
            Errno::NOENT | Errno::NOTDIR => "bring the file back to this path",
            Errno::ROFS => "make its file system writable, as it was at the checkpoint",
            _ => "",
        },
    };
    ghost::revive(cx, reg)?;
    if let Some(mode) = reg.mode {
        let found = open_in_root(cx, reg, OFlags::PATH | OFlags::NOFOLLOW).map_err(failed)?;
        let found = rustix::fs::fstat(&found).map_err(failed)?.st_mode;
        let (is, was) = (FileType::from_raw_mode(found), FileType::from_raw_mode(mode));
        if is != was {
            return Err(Error::unsupported(
                object(),
                format!("its path leads to a file of another type now ({is:?}, was {was:?})"),
                "bring back the file as it was at the checkpoint",
            ));
        }
    }
    open_in_root(cx, reg, flags).map_err(failed)
}

/// The flags to open with: those of the record without such as make a file
/// that does not exist, and not waiting for devices.
fn open_flags(reg: &RegFileEntry) -> OFlags {
    let mut flags = OFlags::from_bits_retain(reg.flags);
    if is_path_only(reg.flags) {
        return flags & (OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY);
    }
    flags -= OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC;
    if flags.contains(OFlags::TMPFILE) {
        flags -= OFlags::TMPFILE;
    }
    // A terminal is none of ours, but the path may lead to one by now.
    flags | OFlags::NOCTTY | OFlags::NONBLOCK
}

/// Opens a recorded path, in the mount namespace or below the root where it belongs.
fn open_in_root(cx: &Build<'_>, reg: &RegFileEntry, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    if let Some(view) = cx.mounts.view(reg.mnt_id, &reg.name) {
        if view.name.is_empty() {
            return top_of(view.root, flags);
        }
        // On the mount that it was on, whatever is mounted over that.
        let stay = if view.on_one_mount { ResolveFlags::NO_XDEV } else { ResolveFlags::empty() };
        return rustix::fs::openat2(view.root, view.name, flags, Mode::empty(), ResolveFlags::IN_ROOT | stay);
    }
    let Some(root) = cx.options.root.as_ref().filter(|_| cx.mounts.is_empty()) else {
        return rustix::fs::openat(CWD, reg.name.as_slice(), flags, Mode::empty());
    };
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::openat2(&root, reg.name.as_slice(), flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Opens what a mount shows: a directory, or a file.
fn top_of(mount: BorrowedFd<'_>, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode) == FileType::Directory;
    if is_directory {
        return rustix::fs::openat(mount, c".", flags, Mode::empty());
    }
    if flags.contains(OFlags::PATH) {
        return rustix::io::fcntl_dupfd_cloexec(mount, 0);
    }
    reopen(mount, flags)
}

/// A recorded path for calls that need one: a way through a descriptor, which is to be kept as long, where it does not
/// begin at our own root. Links on the way lead nowhere out of the tree's file system.
pub(super) fn way_in_root(cx: &Build<'_>, reg: &RegFileEntry) -> (Option<OwnedFd>, PathBuf) {
    let name = Path::new(OsStr::from_bytes(&reg.name));
    let Some(view) = cx.mounts.view(reg.mnt_id, &reg.name) else {
        let root = cx.options.root.as_ref().filter(|_| cx.mounts.is_empty());
        return (None, root.map_or(name.to_owned(), |root| root.join(name.strip_prefix("/").unwrap_or(name))));
    };
    let below = Path::new(OsStr::from_bytes(view.name));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    for above in below.ancestors().skip(1) {
        let part = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        if let Ok(directory) = rustix::fs::openat2(view.root, part, flags, Mode::empty(), resolve) {
            let way = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
            return (Some(directory), way.join(below.strip_prefix(above).unwrap_or(below)));
        }
    }
    (None, Path::new("/proc/self/fd").join(view.root.as_raw_fd().to_string()).join(below))
}

/// Opens the file behind a descriptor a second time, as a new open file.
pub(super) fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    // The link of /proc has to be followed, whatever the record says.
    let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())
}

/// For messages.
pub(super) fn object_of(reg: &RegFileEntry) -> Object {
    Object::File(reg.id, String::from_utf8_lossy(&reg.name).into_owned())
}
