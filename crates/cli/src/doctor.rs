//! `cryonaut doctor`: which `criu` the container managers of this machine would call, and whether it is this program.
//!
//! All of them look for the name `criu` in PATH: podman and runc by themselves, crun through libcriu, LXC by execvp(3).
//! The PATH is that of whoever starts them: ours for those that are started by hand, that of the daemon for others.

use anyhow::{Context, Result};
use serde::Serialize;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Programs that are started by hand and call criu.
const PROGRAMS: [&str; 4] = ["podman", "runc", "crun", "lxc-checkpoint"];

/// Those that run all the time and start such programs.
const DAEMONS: [&str; 4] = ["containerd", "dockerd", "crio", "podman"];

/// What one of them would call.
#[derive(Debug, Serialize)]
struct Finding {
    /// Its name, and the pid of one that runs.
    caller: String,
    /// Where it is.
    program: PathBuf,
    /// The criu that it would call.
    criu: Option<PathBuf>,
    /// What that says of itself.
    version: String,
    /// Whether that is this program.
    ours: bool,
    /// Why it calls none at all.
    problem: Option<String>,
}

/// The command.
///
/// # Errors
/// When nothing can be told.
pub fn run(as_json: bool) -> Result<ExitCode> {
    let path = env::var_os("PATH").context("there is no PATH")?;
    let mut findings: Vec<Finding> =
        PROGRAMS.iter().filter_map(|name| Some(examine(name, &lookup(name, &path)?, &path))).collect();
    findings.extend(daemons());
    let all_ours = findings.iter().all(|finding| finding.ours || finding.problem.is_some());
    if as_json {
        println!("{}", serde_json::to_string(&findings).context("cannot put the answers into JSON")?);
    } else {
        show(&findings, &path);
    }
    Ok(if all_ours { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(findings: &[Finding], path: &OsStr) {
    if findings.is_empty() {
        match lookup("criu", path) {
            Some(criu) => println!("none of {} is here; criu is {}", PROGRAMS.join(", "), criu.display()),
            None => println!("none of {} is here, and no criu", PROGRAMS.join(", ")),
        }
    }
    for Finding { caller, program, criu, version, ours, problem } in findings {
        let told = match (problem, criu) {
            (Some(problem), _) => problem.clone(),
            (None, Some(criu)) => {
                let whose = if *ours { "this program" } else { "not this program" };
                format!("calls {}: {whose} ({version})", criu.display())
            }
            (None, None) => "finds no criu in its PATH".into(),
        };
        println!("{caller:<16} {:<24} {told}", program.display());
    }
    if findings.iter().any(|finding| !finding.ours && finding.problem.is_none()) {
        println!(
            "To be called, this program must be the first criu in the PATH: `make install` puts it into /usr/local/sbin."
        );
    }
}

fn examine(caller: &str, program: &Path, path: &OsStr) -> Finding {
    let criu = lookup("criu", path);
    let version = criu.as_deref().map(version).unwrap_or_default();
    let ours = version.contains("cryonaut-");
    let problem =
        (caller == "crun" && !has_criu(program)).then(|| "was built without CRIU: it cannot checkpoint".into());
    Finding { caller: caller.into(), program: program.into(), criu, version, ours, problem }
}

/// crun says with what it was built.
fn has_criu(crun: &Path) -> bool {
    said(crun).is_some_and(|told| told.contains("+CRIU"))
}

fn version(criu: &Path) -> String {
    let told = said(criu).unwrap_or_default();
    let parts: Vec<&str> = told.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    if parts.is_empty() { "it does not tell its version".into() } else { parts.join(", ") }
}

/// What a program answers to `--version`.
fn said(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Those daemons that run, by the PATH that they were started with.
fn daemons() -> Vec<Finding> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(daemon).collect()
}

fn daemon(pid: i32) -> Option<Finding> {
    let of = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
    let name = fs::read_to_string(of("comm")).ok()?;
    let name = name.trim_end();
    if !DAEMONS.contains(&name) {
        return None;
    }
    // podman itself is one only as a service.
    let line = fs::read(of("cmdline")).ok()?;
    if name == "podman" && !line.split(|byte| *byte == 0).any(|word| word == b"service") {
        return None;
    }
    let environment = fs::read(of("environ")).ok()?;
    let path = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"PATH="))?;
    let path = OsString::from_vec(path.to_vec());
    let found = examine(name, &fs::read_link(of("exe")).ok()?, &path);
    Some(Finding { caller: format!("{name} ({pid})"), ..found })
}

/// The first program of this name in a PATH.
fn lookup(name: &str, path: &OsStr) -> Option<PathBuf> {
    let is_program =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(is_program)
}
