//! Action scripts: programs of the caller that are run at the moments of a dump or restore (criu(8),
//! `--action-script`).

use cryonaut_engine::{Answer, Event, Hook};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Runs every script at every moment, in their order. One that fails ends the run.
pub fn hook(scripts: Vec<OsString>, images: PathBuf) -> Hook {
    if scripts.is_empty() {
        return Hook::default();
    }
    Hook::new(move |event| {
        scripts.iter().try_for_each(|script| run(script, &images, event))?;
        Ok(Answer::default())
    })
}

fn run(script: &OsString, images: &PathBuf, event: &Event<'_>) -> Result<(), String> {
    // A shell reads it, so that callers may put arguments behind the path.
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdin(Stdio::null());
    command.env("CRTOOLS_SCRIPT_ACTION", event.moment.name()).env("CRTOOLS_IMAGE_DIR", images);
    if event.root_pid > 0 {
        command.env("CRTOOLS_INIT_PID", event.root_pid.to_string());
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the action script {} failed, {status}", script.display())),
        Err(error) => Err(format!("the action script {} cannot be run: {error}", script.display())),
    }
}
