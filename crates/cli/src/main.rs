//! The front doors: `cryonaut` with its own commands, and `criu` when called by that name or as `cryonaut criu`.
//!
//! This crate owns the user: arguments, terminals, exit statuses, logs and configuration files. What is done stands in
//! the engine.

mod archive;
mod container;
mod criu;
mod doctor;
mod failure;
mod features;
mod native;
mod pidfile;
mod progress;
mod root;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    cryonaut_kernel::heap::keep_freed();
    // Before there is a second thread.
    cryonaut_kernel::sys::fcntl::make_room();
    let arguments: Vec<OsString> = env::args_os().collect();
    let called_as = arguments.first().map(Path::new).and_then(Path::file_name);
    if called_as.is_some_and(|name| name == "criu") {
        return criu::run(&arguments[1..]);
    }
    if arguments.get(1).is_some_and(|first| first == "criu") {
        return criu::run(&arguments[2..]);
    }
    native::run(arguments)
}
