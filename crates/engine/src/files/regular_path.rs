//! Paths as a process sees them: whether one still leads to the file that the
//! process has, and opening it again at restore.

use super::regular::is_path_only;
use super::{Build, Collect, ghost};
use crate::{Error, Object, Result};
use cryonaut_image::records::RegFileEntry;
use cryonaut_kernel::proc::Task;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

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
    let leads = where_leads(&mut cx.regular.mounts, subject)?;
    if leads == Leads::ToIt {
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
    match mounts.stat_as_seen_by(subject.task, subject.link) {
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

/// Who sees the file systems that we see: told, or found out once for each process.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Our mount namespace.
    ours: Option<u64>,
    /// By the directory in /proc, whether it is in ours.
    known: HashMap<String, bool>,
}

impl Mounts {
    /// Takes note of whether a process is in our mount namespace.
    pub(super) fn tell(&mut self, task: &Task, ours: bool) {
        self.known.insert(task.path().to_owned(), ours);
    }

    /// Whether a path that the kernel showed us for a file of the process leads to that very file.
    pub(super) fn lead_to(&mut self, task: &Task, path: &[u8], stat: &Stat) -> bool {
        self.stat_as_seen_by(task, path).is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
    }

    fn are_ours(&mut self, task: &Task) -> std::result::Result<bool, Errno> {
        if let Some(&known) = self.known.get(task.path()) {
            return Ok(known);
        }
        let ours = match self.ours {
            Some(ours) => ours,
            None => rustix::fs::stat("/proc/self/ns/mnt")?.st_ino,
        };
        self.ours = Some(ours);
        let same = rustix::fs::statat(task.dir(), "ns/mnt", AtFlags::empty())?.st_ino == ours;
        self.known.insert(task.path().to_owned(), same);
        Ok(same)
    }

    /// Opens a path that the kernel showed us for a file of the process, without
    /// following a link at its end. Such a path begins at our root, or if the
    /// process is in another mount namespace, at the root of that.
    pub(super) fn open_as_seen_by(
        &mut self,
        task: &Task,
        path: &[u8],
        flags: OFlags,
    ) -> std::result::Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.are_ours(task)? {
            return rustix::fs::openat(CWD, path, flags, Mode::empty());
        }
        let root = rustix::fs::openat(task.dir(), "root", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let root_path = task.link("root").map_err(|e| e.errno().unwrap_or(Errno::IO))?;
        let root_path = root_path.as_os_str().as_bytes();
        let below = if root_path == b"/" { path } else { path.strip_prefix(root_path).unwrap_or(path) };
        rustix::fs::openat2(&root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// `fstat` of what would be opened.
    fn stat_as_seen_by(&mut self, task: &Task, path: &[u8]) -> std::result::Result<Stat, Errno> {
        if self.are_ours(task)? {
            // One call instead of three.
            return rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
        }
        self.open_as_seen_by(task, path, OFlags::PATH).and_then(rustix::fs::fstat)
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
        let found = open_in_root(cx, &reg.name, OFlags::PATH | OFlags::NOFOLLOW).map_err(failed)?;
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
    open_in_root(cx, &reg.name, flags).map_err(failed)
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

fn open_in_root(cx: &Build<'_>, name: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let Some(root) = &cx.options.root else {
        return rustix::fs::openat(CWD, name, flags, Mode::empty());
    };
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::openat2(&root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)
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
