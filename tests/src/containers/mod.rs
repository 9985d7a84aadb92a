//! Containers of real runtimes, which find our program under the name `criu`: run as a user would, checkpointed by the
//! runtime's own command, restored by it, and asked to go on.
//!
//! Nothing of the host's own containers is touched: each test has its storage, its state and its images in a directory
//! of its own.

mod exports;
mod image;
mod kills;
mod lazily;
pub mod newer;
mod podman;
mod podman_kills;
mod pods;
mod programs;
mod runc;
mod surroundings;
mod terminal;
mod translated;
mod words;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

use crate::command::tail;

/// Nothing here takes that long.
const LIMIT: Duration = Duration::from_secs(60);
/// What a container counts into.
const COUNT: &str = "state/count";
/// Counts in its own memory, so that a number is said twice or left out if that is not carried.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i >>/state/count; sleep 0.02; done";

/// What a test does.
type Body = Box<dyn Fn(&Host) -> Result<(), Failed> + Send>;

/// One test: its name, and what it does.
type Test = (&'static str, Body);

/// A test that is a function.
fn test(name: &'static str, body: fn(&Host) -> Result<(), Failed>) -> Test {
    (name, Box::new(body))
}

/// `containers::ROOM::NAME`, with `program` in the place of criu. The whole `main` of a test program.
pub fn suite(program: &Path) -> ExitCode {
    let rooms = [
        ("runc", runc::tests()),
        ("podman", podman::tests()),
        ("exports", exports::tests()),
        ("pods", pods::tests()),
        ("programs", programs::tests()),
        ("translated", translated::tests()),
        ("words", words::tests()),
        ("kills", kills::tests().into_iter().chain(podman_kills::tests()).collect()),
        ("lazily", lazily::tests()),
    ];
    let all = rooms.into_iter().flat_map(|(room, tests)| tests.into_iter().map(move |test| (room, test)));
    let trial = |(room, (name, body)): (&str, Test)| {
        let program = program.to_owned();
        Trial::test(format!("containers::{room}::{name}"), move || body(&Host::new(&program, name)?))
    };
    libtest_mimic::run(&Arguments::from_args(), all.map(trial).collect()).exit_code()
}

/// Where the containers of one test live.
#[derive(Debug)]
struct Host {
    scratch: TempDir,
    /// Where runtimes look for programs: ours comes first.
    path: OsString,
    /// No other test has it.
    name: String,
}

impl Host {
    fn new(program: &Path, name: &str) -> Result<Host, Failed> {
        // Runtimes keep sockets below it, whose names may not be long.
        let scratch = TempDir::with_prefix("cryonaut-ctr-")?;
        let programs = scratch.path().join("bin");
        fs::create_dir(&programs)?;
        symlink(program, programs.join("criu"))?;
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()).into();
        let own = scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Host { scratch, path, name: format!("{name}-{}", own.rsplit('-').next().unwrap_or_default()) })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A program as a user of this host would run it.
    fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.scratch.path()).env_clear();
        command.env("PATH", &self.path).env("HOME", self.scratch.path()).env("TMPDIR", env::temp_dir());
        command.env("CONTAINERS_CONF", self.at("containers.conf"));
        command
    }

    /// Runs a program to its end; what it has said. Its errors are told if it fails.
    fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Result<String, Failed> {
        self.run_at(None, program, arguments)
    }

    /// The same with a terminal in the place of its input and outputs.
    fn run_at<S: AsRef<OsStr>>(
        &self,
        terminal: Option<&OwnedFd>,
        program: &str,
        arguments: &[S],
    ) -> Result<String, Failed> {
        let errors = self.at("errors");
        let said = self.at("said");
        let (mut input, mut outputs) = (Stdio::null(), [File::create(&said)?.into(), File::create(&errors)?.into()]);
        if let Some(terminal) = terminal {
            input = terminal.try_clone()?.into();
            outputs = [terminal.try_clone()?.into(), terminal.try_clone()?.into()];
        }
        let [output, error] = outputs;
        let mut child = self
            .command(program, arguments)
            .stdin(input)
            .stdout::<Stdio>(output)
            .stderr::<Stdio>(error)
            .spawn()
            .map_err(|e| format!("{program}: {e}; scripts/test-deps.sh installs it"))?;
        let deadline = Instant::now() + LIMIT;
        let what = loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(fs::read_to_string(&said)?.trim_end().to_owned()),
                Some(status) => break status.to_string(),
                None if Instant::now() < deadline => sleep(Duration::from_millis(2)),
                None => {
                    child.kill()?;
                    child.wait()?;
                    break "it does not end".to_owned();
                }
            }
        };
        let arguments: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        Err(format!("{program} {}: {what}\n{}", arguments.join(" "), tail(&errors, 20)).into())
    }
}

/// A failure, with the ends of these logs.
fn with_logs(failure: &Failed, logs: &[PathBuf]) -> Failed {
    let there = logs.iter().filter(|log| log.exists());
    let logs: String = there.map(|log| format!("{}:\n{}", log.display(), tail(log, 20))).collect();
    format!("{}\n{logs}", failure.message().unwrap_or_default()).into()
}

/// How far a container has counted.
#[derive(Debug)]
struct Count(PathBuf);

impl Count {
    /// The numbers, as they are.
    fn numbers(&self) -> Result<Vec<usize>, Failed> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let number = |line: &str| line.parse().map_err(|_| format!("the count says '{line}'").into());
        whole.lines().map(number).collect()
    }

    /// How many numbers there are: fails unless they are those from 1 on, one after the other.
    fn so_far(&self) -> Result<usize, Failed> {
        let numbers = self.numbers()?;
        match numbers.iter().enumerate().find(|(at, number)| at + 1 != **number) {
            None => Ok(numbers.len()),
            Some((at, number)) => Err(format!("line {} of the count says {number}", at + 1).into()),
        }
    }

    /// The numbers, once there are so many.
    fn wait_for(&self, many: usize) -> Result<Vec<usize>, Failed> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let numbers = self.numbers()?;
            if numbers.len() >= many {
                return Ok(numbers);
            }
            if Instant::now() > deadline {
                return Err(format!("it counts {} times and no more", numbers.len()).into());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has counted on by `more`.
    fn goes_on(&self, more: usize) -> Result<(), Failed> {
        self.wait_for(self.so_far()? + more)?;
        self.so_far().map(drop)
    }

    /// Fails if it counts on.
    fn stands_still(&self) -> Result<(), Failed> {
        let before = self.so_far()?;
        sleep(Duration::from_millis(100));
        match self.so_far()? == before {
            true => Ok(()),
            false => Err("it counts on, and should not be there any more".into()),
        }
    }
}
