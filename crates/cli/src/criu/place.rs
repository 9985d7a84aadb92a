//! The directories of a call: where images lie, and where logs, statistics and pidfiles go.

use super::settings::Settings;
use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The directories of a call.
#[derive(Debug)]
pub struct Place {
    /// Of the images.
    pub images: PathBuf,
    /// Of everything else.
    pub work: PathBuf,
    /// What keeps them where they are by a number alone.
    held: Vec<OwnedFd>,
}

impl Place {
    /// Those of a command line.
    pub fn of(settings: &Settings) -> Self {
        let images = settings.images_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        let work = settings.work_dir.clone().unwrap_or_else(|| images.clone());
        Place { images, work, held: Vec::new() }
    }

    /// Those of a request; without a directory for the work, the images' is it.
    pub fn of_opened(images: OwnedFd, work: Option<OwnedFd>) -> Result<Self> {
        let images_path = path_of(&images)?;
        let work_path = work.as_ref().map(path_of).transpose()?.unwrap_or_else(|| images_path.clone());
        let held = std::iter::once(images).chain(work).collect();
        Ok(Place { images: images_path, work: work_path, held })
    }

    /// Both must be there: CRIU makes neither, and callers rely on being told of a wrong name.
    pub fn check(&self) -> Result<()> {
        for dir in [&self.images, &self.work] {
            ensure!(dir.is_dir(), "{}: no such directory", dir.display());
        }
        Ok(())
    }

    /// The directory of the images, whatever becomes of the current directory.
    pub fn absolute_images(&self) -> Result<PathBuf> {
        if !self.held.is_empty() {
            return Ok(self.images.clone());
        }
        self.images.canonicalize().with_context(|| format!("{}: cannot be found", self.images.display()))
    }
}

/// Opens a directory to hold it.
pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("{}: cannot be opened", path.display()))
}

/// The name of an open directory; where it has none that leads there, the one by its number.
fn path_of(dir: &OwnedFd) -> Result<PathBuf> {
    let by_number = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let name = std::fs::read_link(&by_number).context("/proc/self/fd: cannot be read")?;
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let is_there = rustix::fs::stat(&name).map(identity) == rustix::fs::fstat(dir).map(identity);
    Ok(if is_there { name } else { by_number })
}
