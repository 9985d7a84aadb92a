//! The program as `criu`: CRIU's command line, exit statuses, logs and files around it.

mod config;
mod log;
mod script;
mod settings;
mod stats;
mod table;

use crate::features::{self, CriuAnswer};
use crate::pidfile::Pidfile;
use crate::{failure, root};
use anyhow::{Context, Result, anyhow, bail, ensure};
use cryonaut_engine::{Afterwards, CheckpointOptions, RestoreOptions, TcpPolicy};
use settings::Settings;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The version of CRIU whose images and command line these are.
const CRIU_VERSION: &str = "4.2";

const USAGE: &str = "\
Usage:
  criu dump -t PID [-D DIR] [options]
  criu restore [-D DIR] [options]
  criu check [--feature NAME]

The options are those of criu(8) 4.2; one whose feature is not in this build is refused by name.
";

/// The whole program, given what follows its name.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let (settings, outcome) = settings::read(arguments, &config::default_files());
    if settings.version {
        println!("Version: {CRIU_VERSION}\nGitID: cryonaut-{}", env!("CARGO_PKG_VERSION"));
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

/// The directories of a call.
#[derive(Debug)]
struct Place {
    images: PathBuf,
    work: PathBuf,
}

impl Place {
    fn of(settings: &Settings) -> Self {
        let images = settings.images_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        let work = settings.work_dir.clone().unwrap_or_else(|| images.clone());
        Place { images, work }
    }

    /// Both must be there: CRIU makes neither, and callers rely on being told of a wrong name.
    fn check(&self) -> Result<()> {
        for dir in [&self.images, &self.work] {
            ensure!(dir.is_dir(), "{}: no such directory", dir.display());
        }
        Ok(())
    }

    fn absolute_images(&self) -> Result<PathBuf> {
        self.images.canonicalize().with_context(|| format!("{}: cannot be found", self.images.display()))
    }
}

fn act(settings: Settings, place: &Place) -> Result<ExitCode> {
    if let Some(refused) = settings.refused.first() {
        bail!("{refused}");
    }
    match settings.action.as_deref() {
        Some("dump") => dump(settings, place),
        Some("restore") => restore(settings, place),
        Some("check") => check(&settings),
        Some(
            action @ ("pre-dump" | "lazy-pages" | "page-server" | "dedup" | "swrk" | "service" | "cpuinfo" | "exec"),
        ) => {
            bail!("the action {action} is not in this build")
        }
        Some(other) => bail!("unknown action: {other}"),
        None => bail!("no action: dump, restore or check must be said"),
    }
}

fn dump(settings: Settings, place: &Place) -> Result<ExitCode> {
    let pid = settings.tree.context("the option --tree is missing: which process is to be dumped?")?;
    place.check()?;
    note_cgroups(settings.manage_cgroups.as_deref())?;
    if let Some(root) = settings.root.as_deref().filter(|root| *root != Path::new("/")) {
        bail!("--root {} is not in this build for dump, which lacks mount namespaces", root.display());
    }
    let mut options = CheckpointOptions {
        afterwards: match (settings.leave_running, settings.leave_stopped) {
            (true, _) => Afterwards::LeaveRunning,
            (_, true) => Afterwards::LeaveStopped,
            _ => Afterwards::Kill,
        },
        file_locks: settings.file_locks,
        shell_job: settings.shell_job,
        link_remap: settings.link_remap,
        ghost_limit: settings.ghost_limit,
        tcp: match (settings.tcp_established, settings.tcp_close) {
            (_, true) => TcpPolicy::Close,
            (true, _) => TcpPolicy::Keep,
            _ => TcpPolicy::Refuse,
        }
        .into(),
        skip_in_flight: settings.skip_in_flight,
        network_lock: settings.network_lock,
        external: settings.external,
        ext_unix_sockets: settings.ext_unix_sockets,
        hook: script::hook(settings.scripts, place.absolute_images()?),
        ..CheckpointOptions::default()
    };
    if let Some(seconds) = settings.timeout {
        options.timeout = limit(seconds);
    }
    let report = cryonaut_engine::checkpoint(pid, &place.images, &options)?;
    let stats = stats::of_dump(&report);
    cryonaut_image::stats::write_dump_stats(&place.work, stats).map_err(cryonaut_engine::Error::from)?;
    if settings.display_stats {
        print!("{}", stats::show_dump(&stats));
    }
    tell_ready(settings.status_fd)?;
    tracing::info!("Dumping finished successfully");
    Ok(ExitCode::SUCCESS)
}

fn restore(settings: Settings, place: &Place) -> Result<ExitCode> {
    place.check()?;
    note_cgroups(settings.manage_cgroups.as_deref())?;
    ensure!(!settings.exec_cmd || !settings.operands.is_empty(), "--exec-cmd: the command to run must stand behind --");
    let options = RestoreOptions {
        shell_job: settings.shell_job,
        leave_stopped: settings.leave_stopped,
        sibling: settings.sibling,
        inherit_fds: settings.inherit_fds,
        file_locks: settings.file_locks,
        tcp: if settings.tcp_close { TcpPolicy::Close } else { TcpPolicy::Keep }.into(),
        network_lock: settings.network_lock,
        root: settings.root,
        hook: script::hook(settings.scripts, place.absolute_images()?),
        ..RestoreOptions::default()
    };
    let pidfile = Pidfile::claim(settings.pidfile.map(|file| place.work.join(file)))?;
    let report = cryonaut_engine::restore(&place.images, &options)?;
    pidfile.write(report.root_pid)?;
    let stats = stats::of_restore(&report);
    cryonaut_image::stats::write_restore_stats(&place.work, stats).map_err(cryonaut_engine::Error::from)?;
    if settings.display_stats {
        print!("{}", stats::show_restore(&stats));
    }
    tell_ready(settings.status_fd)?;
    tracing::info!("Restore finished successfully. Tasks resumed.");
    if settings.exec_cmd {
        let error = Command::new(&settings.operands[0]).args(&settings.operands[1..]).exec();
        return Err(error).with_context(|| format!("{}: cannot be run", settings.operands[0].display()));
    }
    if !settings.detached && !settings.sibling {
        // How it ends is its own affair: the restore went well.
        root::wait(report.root_pid)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(settings: &Settings) -> Result<ExitCode> {
    let Some(name) = &settings.feature else {
        let found = features::probe_all().context("the kernel does not tell what it can do")?;
        if let Some(name) = found.lacking().next() {
            bail!("this kernel lacks {name}, without which nothing works");
        }
        println!("Looks good.");
        return Ok(ExitCode::SUCCESS);
    };
    match features::criu_feature(name) {
        CriuAnswer::Present => Ok(ExitCode::SUCCESS),
        CriuAnswer::Absent => bail!("{name}: this kernel does not have it"),
        CriuAnswer::NotInThisBuild => bail!("{name}: not in this build"),
        CriuAnswer::Unknown => bail!("{name}: no such feature"),
    }
}

/// Cgroups are neither recorded nor made yet: whoever asks for more than that is told.
fn note_cgroups(mode: Option<&str>) -> Result<()> {
    match mode {
        None | Some("none" | "ignore" | "soft") => {}
        Some(mode @ ("props" | "full" | "strict")) => {
            tracing::warn!("--manage-cgroups={mode}: cgroups are not in this build, tasks stay in those of the caller");
        }
        Some(other) => bail!("--manage-cgroups: there is no mode '{other}'"),
    }
    Ok(())
}

/// As long as a caller can mean by it; 0 is no limit.
fn limit(seconds: u64) -> Duration {
    const DAY: u64 = 86_400;
    Duration::from_secs(if seconds == 0 { DAY } else { seconds.min(DAY) })
}

/// One zero byte to the descriptor that the caller waits on; it is closed when we end.
fn tell_ready(fd: Option<i32>) -> Result<()> {
    let Some(fd) = fd else { return Ok(()) };
    // Opened anew by its name under /proc: the number belongs to the caller, and no owned descriptor is to be had
    // from it without trusting him.
    let told =
        File::options().write(true).open(format!("/proc/self/fd/{fd}")).and_then(|mut file| file.write_all(&[0]));
    told.with_context(|| format!("--status-fd {fd}: cannot be written to"))
}
