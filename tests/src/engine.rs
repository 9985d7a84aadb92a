//! What checkpoints and restores a workload: our own program, or the peer.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;

use crate::catalogue::Declaration;
use crate::command::{CommandFailure, run_command, tail};
use crate::family::MARK;

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A checkpoint program and how it is called.
#[derive(Debug, Clone)]
pub enum Engine {
    /// `cryonaut checkpoint` and `cryonaut restore`.
    Cryonaut(PathBuf),
    /// `criu dump` and `criu restore`.
    Criu(PathBuf),
}

impl Engine {
    /// Our own program: CRYONAUT_BIN, or else what cargo has built beside this test (`target/PROFILE/cryonaut`).
    ///
    /// # Panics
    /// If the path of the running test is unknown.
    pub fn own() -> Self {
        let built = || {
            let test = env::current_exe().expect("a running program has a path");
            test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("cryonaut")
        };
        Self::Cryonaut(env::var_os("CRYONAUT_BIN").map_or_else(built, PathBuf::from))
    }

    /// The peer: what CRIU names, usually scripts/peer-criu.
    pub fn peer() -> Option<Self> {
        env::var_os("CRIU").map(|path| Self::Criu(PathBuf::from(path)))
    }

    /// Writes the tree below `pid` into `images`, a directory that is not there yet.
    ///
    /// # Errors
    /// When the program fails or takes more than a minute.
    pub(crate) fn checkpoint(
        &self,
        workload: &Declaration,
        pid: Pid,
        images: &Path,
        leave_running: bool,
    ) -> Result<(), CommandFailure> {
        if let Self::Criu(_) = self {
            make_directory(images)?;
        }
        self.run(&mut self.checkpoint_command(workload, pid, images, leave_running), images, "dump.log")
    }

    /// The command line of [`Engine::checkpoint`].
    pub(crate) fn checkpoint_command(
        &self,
        workload: &Declaration,
        pid: Pid,
        images: &Path,
        leave_running: bool,
    ) -> Command {
        let pid = pid.as_raw_nonzero().to_string();
        let mut command = self.command(images);
        match self {
            Self::Cryonaut(_) => command.args(["checkpoint", &pid, "-o"]).arg(images),
            Self::Criu(_) => command
                .args(["dump", "--no-default-config", "--tree", &pid, "-v4", "--log-file", "dump.log", "--images-dir"])
                .arg(images)
                .args(&workload.criu_flags),
        };
        command.args(&workload.flags).args(&workload.checkpoint_flags);
        if leave_running {
            command.arg("--leave-running");
        }
        command
    }

    /// Brings back what `images` holds, and returns when it runs; `lazily`, before its memory is there.
    ///
    /// # Errors
    /// When the program fails, takes more than a minute, or names another root process than `pid`.
    pub(crate) fn restore(
        &self,
        workload: &Declaration,
        pid: Pid,
        images: &Path,
        lazily: bool,
    ) -> Result<(), CommandFailure> {
        let mut command = self.restore_command(workload, images);
        if lazily {
            command.arg("--lazy");
        }
        self.run(&mut command, images, "restore.log")?;
        let named = fs::read_to_string(images.with_extension("pid")).unwrap_or_default();
        if named.trim() == pid.as_raw_nonzero().to_string() {
            return Ok(());
        }
        Err(CommandFailure {
            command: format!("{command:?}"),
            what: format!("the pidfile says '{}', the root process was {}", named.trim(), pid.as_raw_nonzero()),
            output: String::new(),
        })
    }

    /// The command line of [`Engine::restore`]; the pid goes into a file beside the images.
    pub(crate) fn restore_command(&self, workload: &Declaration, images: &Path) -> Command {
        let pidfile = images.with_extension("pid");
        // CRIU creates it exclusively, and an earlier restore from the same images may have left one.
        let _ = fs::remove_file(&pidfile);
        let mut command = self.command(images);
        match self {
            Self::Cryonaut(_) => {
                command.arg("restore").arg(images).args(["--detach", "--pidfile"]).arg(&pidfile).args(&workload.flags)
            }
            Self::Criu(_) => command
                .args(["restore", "--no-default-config", "--restore-detached", "-v4", "--log-file", "restore.log"])
                .args(&workload.flags)
                .args(&workload.criu_flags)
                .arg("--images-dir")
                .arg(images)
                .arg("--pidfile")
                .arg(&pidfile),
        };
        command
    }

    /// The engine carries the family's mark as well: what it leaves behind by mistake is then found and ended too.
    fn command(&self, images: &Path) -> Command {
        let (Self::Cryonaut(program) | Self::Criu(program)) = self;
        let mut command = Command::new(program);
        command.env(MARK, images.parent().map_or(OsStr::new(""), Path::as_os_str));
        command
    }

    fn run(&self, command: &mut Command, images: &Path, criu_log: &str) -> Result<(), CommandFailure> {
        let log = images.with_extension("log");
        run_command(command, &log, TIME_LIMIT).map_err(|mut failure| {
            if let Self::Criu(_) = self {
                failure.output += &tail(&images.join(criu_log), 15);
            }
            failure
        })
    }
}

/// CRIU wants the directory of its images to be there.
fn make_directory(images: &Path) -> Result<(), CommandFailure> {
    fs::create_dir(images).map_err(|error| CommandFailure {
        command: format!("mkdir {}", images.display()),
        what: error.to_string(),
        output: String::new(),
    })
}
