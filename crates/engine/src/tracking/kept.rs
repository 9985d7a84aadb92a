//! Tracking that goes on when this program has ended, for the next image of the same processes: a keeper
//! (`kernel/keeper.rs`) has the userfaultfds meanwhile, and the image says by which name they are to be had
//! (`cryonaut-tracking.json`).
//!
//! ```text
//!   tracked ──image committed──▶ kept ──next image──▶ tracked
//!                                  └──all processes have ended, or the keeper was killed──▶ lost: all is copied again
//! ```
//!
//! They are given away once. An image that fails after that leaves no tracking behind.
//!
//! Soft-dirty bits need no keeper: they stay with the process. But whoever clears them, be it for another image, has to be
//! noticed: so there is a mark for each process, a file that says which image they were cleared for. It goes when they are
//! cleared for another. (Who clears them without knowing of marks, as CRIU does, is not noticed.)

use super::TrackedSpace;
use crate::freeze::pid_of;
use crate::memory::ranges::Range;
use crate::namespaces::inner;
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::features::boot_id;
use cryonaut_kernel::keeper;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::uffd::Uffd;
use rustix::process::PidfdFlags;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The record's name.
const NAME: &str = "tracking";
/// Where the names are.
const DIRECTORY: &str = "/run/cryonaut";

/// The record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The name in the file system.
    socket: PathBuf,
    /// The processes, in the order of their userfaultfds.
    processes: Vec<i32>,
    /// Processes with soft-dirty bits, and what their marks say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    soft_dirty: BTreeMap<i32, String>,
    /// Which pages of processes the image has, or its parents have, if they are at a page server: no pagemap here says so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    at_server: PagesAtServer,
}

/// Ranges of addresses, by pid.
pub type PagesAtServer = BTreeMap<i32, Vec<Range>>;

impl Kept {
    /// Notes in an image that the tracking of these processes of the tree below `root` will be kept.
    ///
    /// # Errors
    /// If the image cannot be written, or a process has ended.
    pub fn note(images: &DumpDir, root: i32, spaces: &[TrackedSpace], at_server: PagesAtServer) -> Result<Kept> {
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let socket = Path::new(DIRECTORY).join(format!("{}{}", prefix(root)?, random.trim()));
        let (watched, by_bits): (Vec<_>, Vec<_>) = spaces.iter().partition(|space| space.uffd().is_some());
        let mark = |space: &TrackedSpace| Ok((space.pid, format!("{} {}", identity(space.pid)?, random.trim())));
        let soft_dirty = by_bits.into_iter().map(mark).collect::<Result<_>>()?;
        let processes = watched.into_iter().map(TrackedSpace::pid).collect();
        let kept = Kept { socket, processes, soft_dirty, at_server };
        images.write_json(NAME, &kept)?;
        Ok(kept)
    }

    /// Keeps them, in the order of the record.
    ///
    /// # Errors
    /// If nobody can.
    pub fn keep(&self, spaces: &[TrackedSpace]) -> Result<()> {
        self.soft_dirty.iter().try_for_each(|(pid, mark)| set_mark(*pid, mark))?;
        if self.processes.is_empty() {
            return Ok(());
        }
        let failed =
            |errno| Error::kernel(Object::Path(self.socket.display().to_string()), "keep tracking by it", errno);
        let pidfd = |pid: &i32| rustix::process::pidfd_open(pid_of(*pid)?, PidfdFlags::empty()).map_err(failed);
        let watched: Vec<OwnedFd> = self.processes.iter().map(pidfd).collect::<Result<_>>()?;
        let files: Vec<BorrowedFd<'_>> = spaces.iter().filter_map(TrackedSpace::uffd).map(AsFd::as_fd).collect();
        match inner::outer() {
            Some(outer) => outer.keep(&self.socket, &files, &watched),
            None => keep_here(&self.socket, &files, watched).map_err(failed),
        }
    }

    /// Takes what is kept for the processes of an image, none if it is lost; and which of its pages are at a page server.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub fn take(image: &ImageDir) -> Result<(Vec<TrackedSpace>, PagesAtServer)> {
        let Some(kept) = image.read_json::<Kept>(NAME)? else { return Ok(Default::default()) };
        let lost = |why: &str| {
            let image = image.path().display();
            tracing::warn!("what was written since the image {image} is not known any more ({why}): all is copied");
        };
        let mut files = Vec::new();
        if !kept.processes.is_empty() {
            files = keeper::take(&kept.socket).inspect_err(|errno| lost(&errno.to_string())).unwrap_or_default();
        }
        let uffds =
            kept.processes.into_iter().zip(files.into_iter().map(Uffd::from_fd)).map(|(pid, uffd)| (pid, Some(uffd)));
        let by_bits = kept.soft_dirty.iter().filter(|(pid, mark)| {
            let is_there = take_mark(**pid, mark);
            if !is_there {
                lost(&format!("the soft-dirty bits of process {pid} were cleared since, or it is another"));
            }
            is_there
        });
        let all = uffds.chain(by_bits.map(|(pid, _)| (*pid, None)));
        // Who has ended since, or has other memory, is not tracked.
        let spaces = all.filter_map(|(pid, uffd)| TrackedSpace::resume(pid, uffd).ok().flatten()).collect();
        Ok((spaces, kept.at_server))
    }
}

/// What tells a process from another that has its pid later.
fn identity(pid: i32) -> Result<String> {
    let boot = boot_id().unwrap_or_default();
    Ok(format!("{boot} {}", Task::open(pid_of(pid)?)?.stat()?.start_time))
}

/// How names of marks begin: pids are told apart by their namespaces.
fn marks(pid: i32) -> Result<String> {
    let namespace = Task::open(pid_of(pid)?)?.namespace(Namespace::Pid)?.unwrap_or_default();
    Ok(format!("soft-dirty-{namespace}-"))
}

fn mark_of(pid: i32) -> Result<PathBuf> {
    Ok(Path::new(DIRECTORY).join(format!("{}{pid}", marks(pid)?)))
}

/// Marks the bits of a process. Marks of those that have ended go.
fn set_mark(pid: i32, mark: &str) -> Result<()> {
    let path = mark_of(pid)?;
    let failed = |e: std::io::Error| {
        let object = Object::Path(path.display().to_string());
        Error::kernel(object, "mark soft-dirty bits by it", crate::error::errno_of(&e))
    };
    std::fs::create_dir_all(DIRECTORY).map_err(failed)?;
    let prefix = marks(pid)?;
    for entry in std::fs::read_dir(DIRECTORY).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse::<i32>().ok());
        if of.is_some_and(|of| pid_of(of).is_ok_and(|of| Task::open(of).is_err())) {
            // Another may have done it already.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    std::fs::write(&path, mark).map_err(failed)
}

/// Takes a mark away; whether it was there, and of this very process.
fn take_mark(pid: i32, mark: &str) -> bool {
    let is_its =
        || Some(std::fs::read_to_string(mark_of(pid).ok()?).ok()? == mark && mark.starts_with(&identity(pid).ok()?));
    is_its() == Some(true) && forget(pid).is_ok()
}

/// The bits of a process are to be cleared: no image may rely on them any more.
///
/// # Errors
/// If the mark stays.
pub fn forget(pid: i32) -> Result<()> {
    let path = mark_of(pid)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            let object = Object::Path(path.display().to_string());
            Err(Error::kernel(object, "take the mark of soft-dirty bits away", crate::error::errno_of(&e)))
        }
        _ => Ok(()),
    }
}

/// Ends what is kept of the tree below `root`, which is of no use: its protection would be taken for the program's own.
///
/// # Errors
/// If the process has ended.
pub fn end_all(root: i32) -> Result<()> {
    let prefix = prefix(root)?;
    let names = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter(|name| name.as_bytes().starts_with(prefix.as_bytes())) {
        // One that cannot be had any more has nothing left to end.
        let _ = keeper::take(&Path::new(DIRECTORY).join(name));
    }
    Ok(())
}

/// How names of what is kept of a tree begin: pids are told apart by their namespaces.
fn prefix(root: i32) -> Result<String> {
    let namespace = Task::open(pid_of(root)?)?.namespace(Namespace::Pid)?.unwrap_or_default();
    Ok(format!("tracking-{namespace}-{root}-"))
}

/// Keeps them by a process in our own pid namespace.
pub fn keep_here(
    socket: &Path,
    files: &[BorrowedFd<'_>],
    watched: Vec<OwnedFd>,
) -> std::result::Result<(), rustix::io::Errno> {
    std::fs::create_dir_all(DIRECTORY).map_err(|e| crate::error::errno_of(&e))?;
    keeper::keep(socket, files, &watched)
}
