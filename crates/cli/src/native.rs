//! `cryonaut checkpoint`, `restore`, `check` and `doctor`.

use crate::container::Container;
use crate::pidfile::Pidfile;
use crate::progress::Bar;
use crate::{doctor, failure, features, root};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use cryonaut_engine::{
    Afterwards, CheckpointOptions, Codec, LAZY_LOG, Lazy, LockMethod, Pause, PrecopyMode, PrecopyOptions,
    PrecopyReport, RestoreOptions, TcpPolicies, TcpPolicy, TcpRule,
};
use cryonaut_image::ImageDir;
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Freeze a process tree, write it down, bring it back.
#[derive(Debug, Parser)]
#[command(
    name = "cryonaut",
    version,
    arg_required_else_help = true,
    after_help = "`cryonaut criu ...`, or this program \
under the name criu, takes CRIU's command line."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the complete state of a process and all below it to a directory, and end them
    Checkpoint(Checkpoint),
    /// Bring a tree back under the same pids, and wait for its root to end
    Restore(Restore),
    /// Make one image of one that builds on others
    Squash(Squash),
    /// Write an image once more, in a form that other tools read
    Export(Export),
    /// Tell what this kernel can do, and what is lost without it
    Check(Check),
    /// Tell which criu the container managers of this machine would call, and whether it is this program
    Doctor(Check),
}

#[derive(Debug, Args)]
struct Checkpoint {
    /// The root of the tree, or a container as podman:NAME or runc:NAME
    #[arg(value_name = "PID|CONTAINER", value_parser = subject)]
    subject: Subject,
    /// Where the image goes; made if it does not exist [default: ./checkpoint-PID]. Of a container of podman it is an
    /// archive (.tar, .tar.gz, .tar.zst), which `podman container restore --import` takes as well
    #[arg(short, long, value_name = "DIR|FILE")]
    output: Option<PathBuf>,
    /// Let the tree go on afterwards
    #[arg(short = 'R', long, conflicts_with = "leave_stopped")]
    leave_running: bool,
    /// Leave the tree stopped afterwards, as by SIGSTOP
    #[arg(short = 's', long)]
    leave_stopped: bool,
    /// Copy memory while the tree runs, so that it stands still only for what it has written last: always, never, or (auto)
    /// if it goes on afterwards and has enough of it
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto",
        default_missing_value = "always", value_parser = precopy_mode)]
    precopy: PrecopyMode,
    /// How long the tree may stand still, in milliseconds, after a precopy; with `:strict` there is no checkpoint if that
    /// cannot be kept
    #[arg(long, value_name = "MS[:strict]", default_value = "20", value_parser = max_pause)]
    max_pause: (Duration, Pause),
    /// Seconds after which a precopy ends, and the tree stands still
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    precopy_limit: u64,
    #[command(flatten)]
    shared: Shared,
    /// Leave memory that has not changed since this image of the tree, which has gone on, to it; implies --track
    #[arg(long, value_name = "DIR")]
    since: Option<PathBuf>,
    /// Have writes to memory noted on afterwards, for the next image of the tree (--since), if it goes on
    #[arg(long)]
    track: bool,
    /// Store memory compressed: lz4 (fast) or zstd (small). CRIU cannot read that; `cryonaut export --criu` undoes it
    #[arg(long, value_name = "CODEC", value_parser = codec)]
    compress: Option<Codec>,
    /// Give connections up that are not established yet or wait to be accepted
    #[arg(long)]
    skip_in_flight: bool,
    /// Carry deleted files that have other names by giving them a temporary one
    #[arg(long)]
    link_remap: bool,
    /// Let peers of Unix sockets be outside of the tree: datagram sockets find them again by name, others see them gone.
    /// Either all, or those connections of which one end has one of these inode numbers
    #[arg(long, value_name = "INODES", num_args = 0.., require_equals = true, value_delimiter = ',')]
    ext_unix_sk: Option<Vec<u32>>,
    /// Leave the mount with this mountpoint out, and what is mounted upon it: the tree comes back without
    #[arg(long, value_name = "MOUNTPOINT")]
    skip_mnt: Vec<String>,
}

fn precopy_mode(text: &str) -> Result<PrecopyMode, String> {
    match text {
        "auto" => Ok(PrecopyMode::Auto),
        "always" => Ok(PrecopyMode::Always),
        "never" => Ok(PrecopyMode::Never),
        other => Err(format!("'{other}' is none of auto, always, never")),
    }
}

fn max_pause(text: &str) -> Result<(Duration, Pause), String> {
    let (number, pause) = match text.split_once(':') {
        None => (text, Pause::Aim),
        Some((number, "strict")) => (number, Pause::AtMost),
        Some((_, other)) => return Err(format!("'{other}' is not strict")),
    };
    let milliseconds = number.parse().map_err(|_| format!("'{number}' is no number of milliseconds"))?;
    Ok((Duration::from_millis(milliseconds), pause))
}

/// What is to be checkpointed.
#[derive(Debug, Clone)]
enum Subject {
    Tree(i32),
    Container(Container),
}

fn subject(text: &str) -> Result<Subject, String> {
    if let Some(container) = Container::parse(text) {
        return Ok(Subject::Container(container));
    }
    let pid = text.parse().ok().filter(|pid| *pid > 0);
    pid.map(Subject::Tree).ok_or_else(|| "neither a pid nor podman:NAME or runc:NAME".to_owned())
}

#[derive(Debug, Args)]
struct Restore {
    /// The directory of the image, or the container as podman:NAME or runc:NAME, which is then read from --input
    #[arg(value_name = "DIR|CONTAINER")]
    dir: PathBuf,
    /// The image of a container [default: as `cryonaut checkpoint` has it]. One of runc comes back into the bundle that is
    /// the current directory
    #[arg(short, long, value_name = "DIR|FILE")]
    input: Option<PathBuf>,
    /// Return as soon as the tree runs, instead of waiting for its root and exiting as it does
    #[arg(short, long)]
    detach: bool,
    /// Write the pid of the root to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Leave the tree stopped, as by SIGSTOP
    #[arg(short = 's', long)]
    leave_stopped: bool,
    /// Let the tree run before its memory is there: a process in the background fills it, first what is waited for
    #[arg(long)]
    lazy: bool,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Debug, Args)]
struct Squash {
    /// The directory of the image; its parents are left alone
    dir: PathBuf,
    /// Where the image of all goes; made if it does not exist [default: in the place of DIR's]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Report as one object of JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Export {
    /// As an ordinary image of CRIU's format: memory is not compressed, and in no other image
    #[arg(long, required = true)]
    criu: bool,
    /// The directory of the image
    dir: PathBuf,
    /// Where the other goes; made if it does not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Report as one object of JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Shared {
    /// The tree belongs to a terminal session outside of it, such as a job of a shell
    #[arg(short = 'j', long)]
    shell_job: bool,
    /// Carry file locks and leases
    #[arg(short = 'l', long)]
    file_locks: bool,
    /// Carry connections of TCP
    #[arg(long, conflicts_with = "tcp_close")]
    tcp_established: bool,
    /// Let programs see the end of their connections of TCP
    #[arg(long)]
    tcp_close: bool,
    /// Keep, close or reset the connections with some peers, all without an address: POLICY[:ADDRESS[/BITS][:PORT]],
    /// addresses of IPv6 in brackets. Of several that match, the first counts, before the two options above
    #[arg(long, value_name = "POLICY[:CIDR:PORT]")]
    tcp: Vec<TcpRule>,
    /// By what packets of connections are dropped while these are away: nftables, iptables, or skip for by nothing
    #[arg(long, value_name = "METHOD", default_value = "nftables", value_parser = lock_method)]
    network_lock: LockMethod,
    /// Report, and failures too, as one object of JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Shared {
    /// The options of a runtime; those that it has not are refused, `others` as well.
    fn for_runtime(&self, others: &[(bool, &str)]) -> Result<Vec<&'static str>> {
        let own = [
            (self.shell_job, "--shell-job"),
            (self.tcp_close, "--tcp-close"),
            (!self.tcp.is_empty(), "--tcp"),
            (self.network_lock != LockMethod::Nftables, "--network-lock"),
        ];
        if let Some((_, name)) = own.iter().chain(others).find(|(is_asked, _)| *is_asked) {
            bail!("{name} is not for containers: their runtimes have no such option");
        }
        let asked = [(self.file_locks, "--file-locks"), (self.tcp_established, "--tcp-established")];
        Ok(asked.into_iter().filter(|(is_asked, _)| *is_asked).map(|(_, name)| name).collect())
    }

    fn tcp_policies(&self) -> TcpPolicies {
        let otherwise = match (self.tcp_established, self.tcp_close) {
            (true, _) => TcpPolicy::Keep,
            (_, true) => TcpPolicy::Close,
            _ => TcpPolicy::Refuse,
        };
        TcpPolicies::from(otherwise).with_rules(self.tcp.clone())
    }
}

fn codec(name: &str) -> Result<Codec, String> {
    Codec::from_name(name).ok_or_else(|| format!("'{name}' is none of lz4, zstd"))
}

fn lock_method(name: &str) -> Result<LockMethod, String> {
    match name {
        "nftables" => Ok(LockMethod::Nftables),
        "iptables" => Ok(LockMethod::Iptables),
        "skip" => Ok(LockMethod::Skip),
        other => Err(format!("'{other}' is none of nftables, iptables, skip")),
    }
}

#[derive(Debug, Args)]
struct Check {
    /// Report as one object of JSON on stdout
    #[arg(long)]
    json: bool,
}

/// The whole program under its own name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    };
    log_to_stderr();
    let (result, as_json) = match &command {
        Command::Checkpoint(c) => (checkpoint(c), c.shared.json),
        Command::Restore(r) => (restore(r), r.shared.json),
        Command::Squash(s) => (squash("squash", &s.dir, s.output.as_ref(), s.json), s.json),
        Command::Export(e) => (squash("export", &e.dir, Some(&e.output), e.json), e.json),
        Command::Check(c) => (check(c.json), c.json),
        Command::Doctor(c) => (doctor::run(c.json), c.json),
    };
    result.unwrap_or_else(|error| failure::tell(&error, as_json))
}

/// Warnings, or what CRYONAUT_LOG asks for (such as `debug` or `cryonaut_engine=trace`).
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("CRYONAUT_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
}

fn checkpoint(asked: &Checkpoint) -> Result<ExitCode> {
    let pid = match &asked.subject {
        Subject::Tree(pid) => *pid,
        Subject::Container(container) => return checkpoint_container(asked, container),
    };
    let dir = asked.output.clone().unwrap_or_else(|| PathBuf::from(format!("checkpoint-{pid}")));
    let options = CheckpointOptions {
        afterwards: match (asked.leave_running, asked.leave_stopped) {
            (true, _) => Afterwards::LeaveRunning,
            (_, true) => Afterwards::LeaveStopped,
            _ => Afterwards::Kill,
        },
        file_locks: asked.shared.file_locks,
        shell_job: asked.shared.shell_job,
        link_remap: asked.link_remap,
        ext_unix_sockets: asked.ext_unix_sk.as_ref().is_some_and(Vec::is_empty),
        skip_mounts: asked.skip_mnt.clone(),
        external: asked.ext_unix_sk.iter().flatten().map(|inode| format!("unix[{inode}]")).collect(),
        tcp: asked.shared.tcp_policies(),
        network_lock: asked.shared.network_lock,
        skip_in_flight: asked.skip_in_flight,
        compress: asked.compress,
        keep_tracking: asked.track || asked.since.is_some(),
        parent: since(asked.since.as_deref(), &dir)?,
        precopy: PrecopyOptions {
            mode: asked.precopy,
            max_pause: asked.max_pause.0,
            pause: asked.max_pause.1,
            limit: Duration::from_secs(asked.precopy_limit),
        },
        ..CheckpointOptions::default()
    };
    let bar = Bar::follow("checkpoint", options.progress.clone());
    let report = cryonaut_engine::checkpoint(pid, &dir, &options);
    drop(bar);
    let report = report?;
    if asked.shared.json {
        print_json("checkpoint", &report)?;
    } else {
        println!(
            "{}: {} of process {}, {} of memory, frozen for {}",
            dir.display(),
            count(report.processes as u64, "process", "processes"),
            report.root_pid,
            size((report.pages_written + report.shared_pages_written) * 4096),
            milliseconds(report.frozen_us),
        );
        report.precopy.iter().for_each(tell_precopy);
    }
    Ok(ExitCode::SUCCESS)
}

/// The image before, by a path from the directory of the new one: both may be moved together.
fn since(image: Option<&Path>, dir: &Path) -> Result<Option<PathBuf>> {
    let Some(image) = image else { return Ok(None) };
    let whole = std::fs::canonicalize(image).with_context(|| format!("{}: no image there", image.display()))?;
    let beside = dir.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let beside = beside.and_then(|parent| std::fs::canonicalize(parent).ok());
    Ok(Some(match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) if beside.as_deref() == Some(parent) => Path::new("..").join(name),
        _ => whole,
    }))
}

/// What was copied while the tree ran.
fn tell_precopy(precopy: &PrecopyReport) {
    let pages: u64 = precopy.rounds.iter().map(|round| round.pages).sum();
    println!(
        "  copied while it ran: {} in {}, stopped for {} to have writes noted; {} pages written to in a second",
        size(pages * 4096),
        count(precopy.rounds.len() as u64, "round", "rounds"),
        milliseconds(precopy.stops_us.iter().sum()),
        precopy.written_pages_per_second,
    );
    for process in &precopy.untracked {
        println!("  copied in the freeze: process {}, since {}", process.pid, process.reason);
    }
}

fn checkpoint_container(asked: &Checkpoint, container: &Container) -> Result<ExitCode> {
    let else_asked = [
        (asked.leave_stopped, "--leave-stopped"),
        (asked.skip_in_flight, "--skip-in-flight"),
        (asked.link_remap, "--link-remap"),
        (asked.compress.is_some(), "--compress"),
        (asked.ext_unix_sk.is_some(), "--ext-unix-sk"),
        (!asked.skip_mnt.is_empty(), "--skip-mnt"),
    ];
    let mut options = asked.shared.for_runtime(&else_asked)?;
    options.extend(asked.leave_running.then_some("--leave-running"));
    let image = asked.output.clone().unwrap_or_else(|| container.default_image());
    container.checkpoint(&image, &options)?;
    if asked.shared.json {
        print_json("checkpoint", &json!({ "image": image }))?;
    } else {
        println!("{}", image.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn restore_container(asked: &Restore, container: &Container) -> Result<ExitCode> {
    let else_asked =
        [(asked.leave_stopped, "--leave-stopped"), (asked.pidfile.is_some(), "--pidfile"), (asked.lazy, "--lazy")];
    let options = asked.shared.for_runtime(&else_asked)?;
    let image = asked.input.clone().unwrap_or_else(|| container.default_image());
    container.restore(&image, &options)?;
    if asked.shared.json {
        print_json("restore", &json!({ "image": image }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn restore(asked: &Restore) -> Result<ExitCode> {
    if let Some(container) = asked.dir.to_str().and_then(Container::parse) {
        return restore_container(asked, &container);
    }
    if asked.input.is_some() {
        bail!("--input is of containers: name one as podman:NAME or runc:NAME");
    }
    if !asked.dir.is_dir() {
        bail!("{}: no such directory", asked.dir.display());
    }
    let options = RestoreOptions {
        shell_job: asked.shared.shell_job,
        leave_stopped: asked.leave_stopped,
        lazy: if asked.lazy { Lazy::Filler(LAZY_LOG.into()) } else { Lazy::No },
        file_locks: asked.shared.file_locks,
        tcp: asked.shared.tcp_policies(),
        network_lock: asked.shared.network_lock,
        ..RestoreOptions::default()
    };
    let pidfile = Pidfile::claim(asked.pidfile.clone())?;
    let bar = Bar::follow("restore", options.progress.clone());
    let report = cryonaut_engine::restore(&asked.dir, &options);
    drop(bar);
    let report = report?;
    pidfile.write(report.root_pid)?;
    if asked.shared.json {
        print_json("restore", &report)?;
    } else {
        // The tree may be writing to the same stdout: this is not part of what it says.
        eprintln!(
            "{}: {} back as process {} after {}",
            asked.dir.display(),
            count(report.processes as u64, "process", "processes"),
            report.root_pid,
            milliseconds(report.total_us),
        );
    }
    if asked.detach { Ok(ExitCode::SUCCESS) } else { root::wait(report.root_pid).map(ExitCode::from) }
}

fn squash(command: &str, dir: &PathBuf, output: Option<&PathBuf>, as_json: bool) -> Result<ExitCode> {
    let image = ImageDir::open(dir)?;
    let out = output.unwrap_or(dir);
    let squashed = cryonaut_image::squash::squash(&image, out)?;
    let (pages, from_parents) = (squashed.pages, squashed.from_parents);
    if as_json {
        print_json(command, &json!({ "image": out, "pages": pages, "pages_from_parents": from_parents }))?;
    } else {
        let sizes = (size(pages * 4096), size(from_parents * 4096));
        println!("{}: {} of memory, {} of it from parents", out.display(), sizes.0, sizes.1);
    }
    Ok(ExitCode::SUCCESS)
}

fn check(as_json: bool) -> Result<ExitCode> {
    let found = features::probe_all().context("the kernel does not tell what it can do")?;
    if as_json {
        println!("{}", serde_json::to_string(&found).context("cannot put the answers into JSON")?);
    } else {
        println!("Linux {}", found.kernel);
        show_features(&found.features);
        println!("Capabilities");
        show_features(&found.capabilities);
    }
    let lacking: Vec<_> = found.lacking().collect();
    if lacking.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if as_json {
        return Ok(ExitCode::FAILURE);
    }
    bail!("nothing works here without: {}", lacking.join(", "))
}

fn show_features(features: &[features::Feature]) {
    for feature in features {
        if feature.present {
            println!("  {:<30} yes", feature.name);
            continue;
        }
        println!("  {:<30} no   {}; lost: {}", feature.name, feature.reason, feature.lost);
        if !feature.instead.is_empty() {
            println!("  {:<35} instead: {}", "", feature.instead);
        }
    }
}

fn print_json(name: &str, report: &impl serde::Serialize) -> Result<()> {
    let report = serde_json::to_value(report).context("cannot put the report into JSON")?;
    println!("{}", json!({ name: report }));
    Ok(())
}

fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_told_in_binary_units() {
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(3 << 19), "1.5 MiB");
        assert_eq!(size(1 << 30), "1.0 GiB");
    }
}
