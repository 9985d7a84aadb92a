//! Runs a program to its end, within a time limit.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A program that could not be run, took too long, or did not exit with 0; says which, with the end of its output.
#[derive(Debug, thiserror::Error)]
#[error("{command}: {what}\n{output}")]
pub struct CommandFailure {
    /// The command line.
    pub command: String,
    /// How it ended.
    pub what: String,
    /// The last lines of its stdout and stderr.
    pub output: String,
}

/// Runs `command` with stdin from /dev/null and both outputs appended to `log`.
///
/// # Errors
/// When it cannot be started, does not exit with 0, or runs longer than `limit`; in the last case it is killed.
pub fn run_command(command: &mut Command, log: &Path, limit: Duration) -> Result<(), CommandFailure> {
    let line = format!("{command:?}");
    let failure = |what: String| CommandFailure { command: line.clone(), what, output: tail(log, 25) };
    let out =
        File::options().create(true).append(true).open(log).map_err(|e| failure(format!("{}: {e}", log.display())))?;
    let err = out.try_clone().map_err(|e| failure(e.to_string()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|e| failure(format!("cannot be started: {e}")))?;
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failure(format!("failed, {status}"))),
            Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(1)),
            Ok(None) => {
                // Both may fail only if it ended by itself just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failure(format!("still running after {} s, killed", limit.as_secs())));
            }
            Err(error) => return Err(failure(error.to_string())),
        }
    }
}

/// The last `lines` lines of a log, indented; what cannot be read says so.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let bytes = match fs::read(log) {
        Ok(bytes) => bytes,
        Err(error) => return format!("    ({}: {error})", log.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("    {line}\n")).collect()
}
