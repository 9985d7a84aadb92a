//! The program as `criu`: CRIU's command line, exit statuses, logs and files around it, and its RPC.

mod actions;
mod cgroup_props;
mod config;
mod lazy_pages;
mod log;
mod page_server;
mod place;
mod rpc;
mod script;
mod settings;
mod stats;
mod table;

use crate::{failure, root};
use anyhow::{Context, Result, anyhow, bail, ensure};
use place::Place;
use settings::Settings;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The version of CRIU whose images, command line and RPC these are.
const CRIU_VERSION: (i32, i32) = (4, 2);

/// What tells this program from CRIU where callers ask for a version.
const GIT_ID: &str = concat!("cryonaut-", env!("CARGO_PKG_VERSION"));

const USAGE: &str = "\
Usage:
  criu dump -t PID [-D DIR] [options]
  criu restore [-D DIR] [options]
  criu check [--feature NAME]
  criu swrk FD
  criu page-server [-D DIR] --port PORT [--address ADDRESS] [--daemon] [--lazy-pages] [options]
  criu lazy-pages [-D DIR] [-W DIR] [--page-server --address ADDRESS --port PORT] [--daemon] [options]
  criu pre-dump -t PID [-D DIR] [--prev-images-dir DIR] [OPTIONS]
  criu dedup [-D DIR]
  criu service [--address PATH] [options]

The options are those of criu(8) 4.2; one whose feature is not in this build is refused by name.
";

/// The whole program, given what follows its name.
pub fn run(arguments: &[OsString]) -> ExitCode {
    // Nothing is written there that the caller has not asked for: it may be the output of a container.
    if arguments.first().is_some_and(|action| action == "swrk") {
        return rpc::swrk(&arguments[1..]);
    }
    if arguments.iter().eq(["service", rpc::ONE]) {
        return rpc::one();
    }
    let (settings, outcome) = settings::read(arguments, &config::default_files());
    if settings.version {
        println!("Version: {}.{}\nGitID: {GIT_ID}", CRIU_VERSION.0, CRIU_VERSION.1);
        return ExitCode::SUCCESS;
    }
    if settings.help {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let place = Place::of(&settings);
    let log = settings.log_file.as_ref().map(|file| place.work.join(file));
    if let Err(error) = log::start(log.as_deref(), settings.verbosity.unwrap_or(settings::DEFAULT_VERBOSITY)) {
        eprintln!("criu: {}: cannot be made: {error}", log.unwrap_or_default().display());
        return ExitCode::FAILURE;
    }
    match outcome.map_err(|problem| anyhow!(problem)).and_then(|()| act(settings, &place)) {
        Ok(status) => status,
        Err(error) => {
            let line = failure::line(&error);
            tracing::error!("{line}");
            if log.is_some() {
                eprintln!("criu: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn act(settings: Settings, place: &Place) -> Result<ExitCode> {
    if let Some(refused) = settings.refused.first() {
        bail!("{refused}");
    }
    match settings.action.as_deref() {
        Some("dump") => {
            place.check()?;
            let hook = script::hook(settings.scripts.clone(), place.absolute_images()?);
            actions::dump(settings, place, hook).map(|()| ExitCode::SUCCESS)
        }
        Some("pre-dump") => {
            place.check()?;
            let hook = script::hook(settings.scripts.clone(), place.absolute_images()?);
            actions::pre_dump(settings, place, hook).map(|()| ExitCode::SUCCESS)
        }
        Some("restore") => restore(settings, place),
        Some("check") => actions::check(settings.feature.as_deref()).map(|()| {
            if settings.feature.is_none() {
                println!("Looks good.");
            }
            ExitCode::SUCCESS
        }),
        Some("service") => rpc::service(&settings, place),
        Some("page-server") => page_server::run(&settings, place),
        Some("dedup") => actions::dedup(place).map(|()| ExitCode::SUCCESS),
        Some("lazy-pages") => lazy_pages::run(&settings, place),
        Some(action @ ("cpuinfo" | "exec")) => {
            bail!("the action {action} is not in this build")
        }
        Some(other) => bail!("unknown action: {other}"),
        None => bail!("no action: dump, restore or check must be said"),
    }
}

fn restore(settings: Settings, place: &Place) -> Result<ExitCode> {
    ensure!(!settings.exec_cmd || !settings.operands.is_empty(), "--exec-cmd: the command to run must stand behind --");
    let command = settings.exec_cmd.then(|| settings.operands.clone());
    let waits = !settings.detached && !settings.sibling;
    let is_lazy = settings.lazy_pages;
    place.check()?;
    let hook = script::hook(settings.scripts.clone(), place.absolute_images()?);
    let root_pid = actions::restore(settings, place, hook, None)?;
    if let Some(command) = command {
        let error = Command::new(&command[0]).args(&command[1..]).exec();
        return Err(error).with_context(|| format!("{}: cannot be run", command[0].display()));
    }
    if waits {
        // How it ends is its own affair: the restore went well, unless it was killed for its memory.
        let status = root::wait(root_pid)?;
        ensure!(
            !is_lazy || status != root::KILLED,
            "process {root_pid}: it was killed; if its memory was lost, the log of criu lazy-pages tells why"
        );
    }
    Ok(ExitCode::SUCCESS)
}
