//! `cryonaut checkpoint podman:NAME` or `runc:NAME`, and `cryonaut restore` of the same: the runtime is asked to do it, and
//! finds this program under the name by which it looks for a checkpointer.
//!
//! Podman makes an archive of its own format, and restores one ([`archive`](crate::archive)); runc has a directory of images, and restores into the
//! bundle in which the caller is. No program is run but the runtime, and what it runs itself.

use crate::archive::aside::Asked;
use crate::archive::{Packing, Unpacked};
use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runtime {
    Podman,
    Runc,
}

impl Runtime {
    fn program(self) -> &'static str {
        match self {
            Runtime::Podman => "podman",
            Runtime::Runc => "runc",
        }
    }
}

/// A container by its runtime and its name there, `RUNTIME:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    runtime: Runtime,
    name: String,
}

impl Container {
    /// `None` if this names no container.
    pub fn parse(text: &str) -> Option<Container> {
        let (runtime, name) = text.split_once(':')?;
        let runtime = [Runtime::Podman, Runtime::Runc].into_iter().find(|known| known.program() == runtime)?;
        (!name.is_empty() && !name.starts_with('-')).then(|| Container { runtime, name: name.to_owned() })
    }

    /// Where its image goes if nothing is said.
    pub fn default_image(&self) -> PathBuf {
        match self.runtime {
            Runtime::Podman => format!("checkpoint-{}.tar.zst", self.name).into(),
            Runtime::Runc => format!("checkpoint-{}", self.name).into(),
        }
    }

    /// Checkpoints it into an archive (podman) or a directory (runc), with these options, which all runtimes call alike.
    pub fn checkpoint(&self, image: &Path, options: &[&str]) -> Result<()> {
        let image = std::path::absolute(image).with_context(|| image.display().to_string())?;
        let mut command = match self.runtime {
            Runtime::Podman => return self.export(&image, options),
            Runtime::Runc => self.with_images(&["checkpoint"], &image)?,
        };
        command.inner.args(options).arg(&self.name);
        self.run(&mut command, &image, "dump.log")
    }

    /// Has podman make an archive, which it packs itself only if that is not by zstd.
    fn export(&self, archive: &Path, options: &[&str]) -> Result<()> {
        let compression = compression(archive);
        let mut command = self.command(&["container", "checkpoint"])?;
        if compression != "zstd" {
            command.inner.args(["--compress", compression, "--export"]).arg(archive).args(options).arg(&self.name);
            return self.run(&mut command, archive, "dump.log");
        }
        let asked = Asked::ask(&command.place.0).context("cannot say that pages are to be set aside")?;
        let packing = Packing::begin(archive, asked.path().to_owned())?;
        command.inner.args(["--compress", "none", "--export"]).arg(packing.path()).args(options).arg(&self.name);
        self.run(&mut command, archive, "dump.log")?;
        packing.finish()
    }

    /// Restores it from there.
    pub fn restore(&self, image: &Path, options: &[&str]) -> Result<()> {
        let image = std::path::absolute(image).with_context(|| image.display().to_string())?;
        let unpacked = match self.runtime {
            Runtime::Podman => Unpacked::new(&image)?,
            Runtime::Runc => None,
        };
        let mut command = match self.runtime {
            Runtime::Podman => {
                let archive = unpacked.as_ref().map_or_else(|| image.clone(), Unpacked::path);
                let mut command = self.command(&["container", "restore"])?;
                command.inner.arg("--import").arg(archive).args(["--name", &self.name]).args(options);
                command
            }
            Runtime::Runc => {
                let mut command = self.with_images(&["restore", "--detach"], &image)?;
                command.inner.args(options).arg(&self.name);
                command
            }
        };
        command.inner.stdin(Stdio::null());
        self.run(&mut command, &image, "restore.log")
    }

    fn with_images(&self, arguments: &[&str], image: &Path) -> Result<Called> {
        let mut command = self.command(arguments)?;
        command.inner.arg("--image-path").arg(image).arg("--work-path").arg(image);
        Ok(command)
    }

    fn command(&self, arguments: &[&str]) -> Result<Called> {
        let place = Place::make()?;
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let mut first = OsString::from(&place.0);
        first.push(":");
        first.push(path);
        let mut inner = Command::new(self.runtime.program());
        inner.args(arguments).env("PATH", first);
        Ok(Called { inner, place })
    }

    fn run(&self, called: &mut Called, image: &Path, log: &str) -> Result<()> {
        let program = self.runtime.program();
        let said = called.inner.output().with_context(|| format!("{program}: cannot be run"))?;
        if said.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        // Our own word is nearer to the cause than what the runtime makes of it.
        let log = match self.runtime {
            Runtime::Podman => log_named(&said),
            Runtime::Runc => Some(image.join(log)),
        };
        let ours = log.and_then(|log| fs::read_to_string(log).ok()).and_then(|text| last_error(&text));
        let theirs = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        bail!("{program}, {}: {}", self.name, ours.as_deref().unwrap_or(theirs.trim_start_matches("Error: ")))
    }
}

/// A call that is prepared, and by what it finds us.
struct Called {
    inner: Command,
    place: Place,
}

/// A directory with this program under the name `criu`, for as long as it is kept.
struct Place(PathBuf);

impl Place {
    fn make() -> Result<Place> {
        let own = env::current_exe().context("cannot find this program itself")?;
        let path = env::temp_dir().join(format!("cryonaut-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path).and_then(|()| symlink(own, path.join("criu")));
        made.with_context(|| format!("{}: cannot be made for the runtime to find this program", path.display()))?;
        Ok(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays is a link in a directory of ours.
        let _ = fs::remove_file(self.0.join("criu"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// How podman calls what the name of an archive asks for.
fn compression(archive: &Path) -> &'static str {
    match archive.extension().and_then(OsStr::to_str) {
        Some("tar") => "none",
        Some("gz" | "tgz") => "gzip",
        _ => "zstd",
    }
}

/// The log that runc names in its message (`log file: PATH`).
fn log_named(said: &str) -> Option<PathBuf> {
    let (_, rest) = said.split_once("log file: ")?;
    Some(rest.split(['"', '\n']).next()?.trim().into())
}

/// What the last error of one of our logs says.
fn last_error(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| line.contains(") Error ("))?;
    line.split_once("): ").map(|(_, what)| what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_by_their_runtime() {
        let podman = Container { runtime: Runtime::Podman, name: "web".into() };
        assert_eq!(Container::parse("podman:web"), Some(podman));
        assert!(["web", "12", "lxc:web", "runc:", "runc:-f"].iter().all(|text| Container::parse(text).is_none()));
    }

    #[test]
    fn the_cause_is_taken_from_the_log() {
        let said =
            "time=\"x\" level=error msg=\"criu failed: type NOTIFY errno 0\\nlog file: /a/dump.log\"\nError: y\n";
        assert_eq!(log_named(&said.replace("\\n", "\n")), Some("/a/dump.log".into()));
        let log = "(00.1) Warn  (a): b\n(00.2) Error (cryonaut/criu/rpc/session): process 6: no (do it)\n";
        assert_eq!(last_error(log).as_deref(), Some("process 6: no (do it)"));
        assert_eq!(compression(Path::new("a.tar.zst")), "zstd");
    }
}
