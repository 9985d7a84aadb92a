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

use super::TrackedSpace;
use crate::freeze::pid_of;
use crate::namespaces::inner;
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir};
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
}

impl Kept {
    /// Notes in an image that the tracking of these processes of the tree below `root` will be kept.
    ///
    /// # Errors
    /// If the image cannot be written.
    pub fn note(images: &DumpDir, root: i32, processes: Vec<i32>) -> Result<Kept> {
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let socket = Path::new(DIRECTORY).join(format!("{}{}", prefix(root)?, random.trim()));
        let kept = Kept { socket, processes };
        images.write_json(NAME, &kept)?;
        Ok(kept)
    }

    /// Keeps them, in the order of the record.
    ///
    /// # Errors
    /// If nobody can.
    pub fn keep(&self, spaces: &[TrackedSpace]) -> Result<()> {
        let failed =
            |errno| Error::kernel(Object::Path(self.socket.display().to_string()), "keep tracking by it", errno);
        let pidfd =
            |space: &TrackedSpace| rustix::process::pidfd_open(pid_of(space.pid)?, PidfdFlags::empty()).map_err(failed);
        let watched: Vec<OwnedFd> = spaces.iter().map(pidfd).collect::<Result<_>>()?;
        let files: Vec<BorrowedFd<'_>> = spaces.iter().map(|space| space.uffd.as_fd()).collect();
        match inner::outer() {
            Some(outer) => outer.keep(&self.socket, &files, &watched),
            None => keep_here(&self.socket, &files, watched).map_err(failed),
        }
    }

    /// Takes what is kept for the processes of an image; none if it is lost.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub fn take(image: &ImageDir) -> Result<BTreeMap<i32, Uffd>> {
        let Some(kept) = image.read_json::<Kept>(NAME)? else { return Ok(BTreeMap::new()) };
        let files = keeper::take(&kept.socket).unwrap_or_else(|errno| {
            let image = image.path().display();
            tracing::warn!("what was written since the image {image} is not known any more ({errno}): all is copied");
            Vec::new()
        });
        Ok(kept.processes.into_iter().zip(files.into_iter().map(Uffd::from_fd)).collect())
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
