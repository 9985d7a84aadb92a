//! Waiting for the root of a restored tree, which is our child.

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitOptions, waitpid};

/// What [`wait`] tells of one that was killed.
pub const KILLED: u8 = 128 + rustix::process::Signal::KILL.as_raw() as u8;

/// Waits until it ends. Its exit status, or 128 and the number of the signal that ended it, as shells put it.
///
/// # Errors
/// When it is not a child of ours.
pub fn wait(pid: i32) -> Result<u8> {
    let child = Pid::from_raw(pid).context("the root process has no pid")?;
    loop {
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
        let (_, status) = waited
            .with_context(|| format!("process {pid}: cannot wait for it to end"))?
            .context("waitpid returned without a child")?;
        if let Some(code) = status.exit_status() {
            return Ok(code as u8);
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(128 + signal as u8);
        }
    }
}
