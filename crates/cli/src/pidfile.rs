//! `--pidfile`: a file that did not exist before and holds the pid of the restored root.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

/// A pidfile that is ours but not yet written. Dropped, it is removed: a restore that fails leaves nothing behind.
#[derive(Debug)]
pub struct Pidfile(Option<(PathBuf, File)>);

impl Pidfile {
    /// Makes the file, before anything is restored. Without a path there is none.
    ///
    /// # Errors
    /// When it cannot be made, or exists already.
    pub fn claim(path: Option<PathBuf>) -> Result<Self> {
        let claim = |path: PathBuf| {
            let file =
                File::create_new(&path).with_context(|| format!("pidfile {}: cannot be created", path.display()))?;
            Ok::<_, anyhow::Error>((path, file))
        };
        Ok(Pidfile(path.map(claim).transpose()?))
    }

    /// Writes the pid, as this process sees it, and keeps the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(mut self, pid: i32) -> Result<()> {
        let Some((path, mut file)) = self.0.take() else {
            return Ok(());
        };
        file.write_all(pid.to_string().as_bytes())
            .with_context(|| format!("pidfile {}: cannot be written", path.display()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.0 {
            // What matters is the error that made us give up.
            let _ = fs::remove_file(path);
        }
    }
}
