//! The freezer (`--freeze-cgroup`): a tree that stands in one already, such as a paused container, has to be let out of it,
//! or it could do nothing for us, and put back afterwards.
//!
//! Otherwise the freezer is not used: ptrace alone stops a tree, and lets it go should we die, which the freezer would not.

use crate::error::errno_of;
use crate::{Error, Object, Result};
use cryonaut_kernel::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a freezer is asked and told.
#[derive(Debug, Clone, Copy)]
struct Manner {
    file: &'static str,
    freeze: &'static str,
    thaw: &'static str,
}

/// Version 1, and version 2.
const MANNERS: [Manner; 2] = [
    Manner { file: "freezer.state", freeze: "FROZEN", thaw: "THAWED" },
    Manner { file: "cgroup.freeze", freeze: "1", thaw: "0" },
];

/// A freezer in which the tree stood, and out of which it has been let while threads were held by ptrace. When this is
/// dropped, it is closed again: behind the threads, whose hands could not go home in it.
#[derive(Debug)]
pub struct Thawed {
    dir: PathBuf,
    manner: Manner,
    /// Whether the tree has ended, and leaves a freezer that takes in whatever comes.
    is_over: bool,
}

impl Thawed {
    /// Whether a freezer holds what is in it: `None` if it is open.
    ///
    /// # Errors
    /// When it is none.
    pub fn closed(dir: &Path) -> Result<Option<Thawed>> {
        let there = MANNERS.iter().find_map(|manner| Some((manner, fs::read_to_string(dir.join(manner.file)).ok()?)));
        let Some((manner, state)) = there else {
            let object = Object::Path(dir.display().to_string());
            return Err(Error::kernel(object, "find the state of a freezer there (--freeze-cgroup)", Errno::NOENT));
        };
        let is_closed = state.trim() == manner.freeze || state.trim() == "FREEZING";
        Ok(is_closed.then(|| Thawed { dir: dir.to_owned(), manner: *manner, is_over: false }))
    }

    /// Opens it.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn open(&self) -> Result<()> {
        self.write(self.manner.thaw, "open the freezer")
    }

    /// Closes it again, behind the tree.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn close(mut self) -> Result<Closed> {
        self.is_over = true;
        self.write(self.manner.freeze, "close the freezer again")?;
        Ok(Closed(std::mem::take(&mut self.dir)))
    }

    /// The tree has ended: nothing is to be put back.
    pub fn end(mut self) {
        self.is_over = true;
    }

    fn write(&self, value: &str, action: &str) -> Result<()> {
        let file = self.dir.join(self.manner.file);
        fs::write(&file, value)
            .map_err(|e| Error::kernel(Object::Path(file.display().to_string()), action, errno_of(&e)))
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Err(error) = self.write(self.manner.freeze, "close the freezer again") {
            tracing::warn!("{error}");
        }
    }
}

/// A freezer that is closed again.
#[derive(Debug)]
pub struct Closed(PathBuf);

impl Closed {
    /// Waits until everything in it stands still: version 1 tells so only when asked.
    pub fn wait(self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        let state = self.0.join("freezer.state");
        let stands_still = || fs::read_to_string(&state).map_or(true, |state| state.trim() == "FROZEN");
        while begun.elapsed() < PATIENCE && !stands_still() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
