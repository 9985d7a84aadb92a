//! Real programs as tests: started as a user would, checkpointed in the middle of their work, restored, and asked to go
//! on with it. Each has one function, which returns what went wrong.
//!
//! Programs that want a terminal run under script(1), so that the terminal belongs to the tree; they get their input
//! through a FIFO that is part of the tree as well.

mod crowd;
mod databases;
mod languages;
mod network;
mod servers;
mod terminals;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::Pid;
use tempfile::TempDir;

use crate::catalogue::Declaration;
use crate::command::tail;
use crate::engine::Engine;
use crate::family::{Family, MARK, adopt_orphans, collect, session_members, wait_gone};

/// Nothing here takes that long; a program that hangs is not waited for without end.
const LIMIT: Duration = Duration::from_secs(90);

/// How long a server is away while its client goes on: CRYONAUT_AWAY in seconds, or one.
fn away() -> Duration {
    let seconds = std::env::var("CRYONAUT_AWAY").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

/// One program's test.
type Body = fn(&Engine) -> Result<(), Failed>;

/// `programs::NAME`. The whole `main` of a test program.
pub fn suite(own: &Engine) -> ExitCode {
    let mut all: Vec<(&str, Body)> = vec![
        ("bash", terminals::bash),
        ("vim", terminals::vim),
        ("less", terminals::less),
        ("python3", languages::python),
        ("java", languages::java),
        ("node", languages::node),
        ("sqlite3", databases::sqlite),
        ("redis", databases::redis),
        ("veth", network::veth),
        ("nginx", servers::nginx),
        ("sshd", servers::sshd),
        ("asyncio", servers::asyncio),
        ("node_http", servers::node_http),
        ("postgresql", databases::postgresql),
        ("redis_replicated", databases::redis_replicated),
        ("redis_without_its_clients", databases::redis_without_its_clients),
    ];
    // Not in what the tests install: large, and of use to those alone who have it.
    if find("go").is_some() {
        all.push(("go", languages::go));
    }
    let trial = |(name, body): (&str, Body)| {
        let own = own.clone();
        Trial::test(format!("programs::{name}"), move || body(&own))
    };
    libtest_mimic::run(&Arguments::from_args(), all.into_iter().map(trial).collect()).exit_code()
}

/// A port that was free a moment ago; another test may take it before a server does, which then says so.
fn free_port() -> std::io::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string())
}

/// Where a program lies that the system, not its user, has installed.
fn find(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
}

fn found(program: &str) -> Result<PathBuf, Failed> {
    find(program).ok_or_else(|| format!("{program} is missing: scripts/test-deps.sh installs it").into())
}

/// A program under test. Dropping it ends all its processes.
#[derive(Debug)]
struct Program {
    engine: Engine,
    declaration: Declaration,
    scratch: TempDir,
    family: Family,
    root: Pid,
    child: Option<Child>,
    input: File,
}

impl Program {
    /// Starts a program in an empty directory, into which `prepare` puts what it needs. Its output goes to `output`.
    fn start(
        engine: &Engine,
        program: &str,
        arguments: &[&str],
        flags: &[&str],
        prepare: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<Self, Failed> {
        adopt_orphans();
        let path = found(program)?;
        let scratch = TempDir::with_prefix("cryonaut-program-")?;
        let directory = scratch.path().join("state");
        fs::create_dir(&directory)?;
        prepare(&directory)?;
        let fifo = directory.join("input");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU)?;
        // Open for both, here and there: no end of file while one of them is away.
        let input = File::options().read(true).write(true).open(&fifo)?;
        let output = File::options().create(true).append(true).open(directory.join("output"))?;
        // A session of its own, as whoever is to be carried away needs one.
        let child = Command::new("/usr/bin/setsid")
            .arg(&path)
            .args(arguments)
            .current_dir(&directory)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &directory)
            .env("TERM", "xterm")
            .env("LC_ALL", "C.UTF-8")
            .env(MARK, scratch.path())
            .stdin(Stdio::from(File::options().read(true).write(true).open(&fifo)?))
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let declaration = Declaration::of_program(program, path, flags);
        let family = Family::of(scratch.path());
        let root = Pid::from_child(&child);
        Ok(Self { engine: engine.clone(), declaration, scratch, family, root, child: Some(child), input })
    }

    /// The same below a shell that gives it its input, for programs that write a title over their environment: their
    /// family is known by the shell.
    fn start_under_shell(
        engine: &Engine,
        program: &str,
        arguments: &[&str],
        flags: &[&str],
        prepare: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<Self, Failed> {
        let path = found(program)?.display().to_string();
        let all = [&["-c", "\"$@\" <input & wait", program, &path], arguments].concat();
        Self::start(engine, "sh", &all, flags, prepare)
    }

    /// Waits until something is so.
    fn wait_until(&self, what: &str, is_it: impl Fn() -> Result<bool, Failed>) -> Result<(), Failed> {
        let deadline = Instant::now() + LIMIT;
        while !is_it()? {
            if Instant::now() > deadline {
                return Err(self.failed(&format!("it never {what}")));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until it accepts connections at a port.
    fn wait_for_port(&self, port: &str) -> Result<(), Failed> {
        let deadline = Instant::now() + LIMIT;
        while std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap_or(0))).is_err() {
            if Instant::now() > deadline {
                return Err(self.failed(&format!("nobody listens at port {port}")));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A file of the program's directory.
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("state").join(name)
    }

    /// Types something.
    fn say(&mut self, text: &str) -> Result<(), Failed> {
        Ok(self.input.write_all(text.as_bytes())?)
    }

    /// What a file holds, once it is what is waited for.
    fn wait_for(&self, name: &str, wanted: &str, is_it: impl Fn(&str) -> bool) -> Result<String, Failed> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let bytes = fs::read(self.path(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            if is_it(&text) {
                return Ok(text.into_owned());
            }
            if Instant::now() > deadline {
                let shown = tail(&self.path(name), 15);
                return Err(self.failed(&format!("no {wanted} in {name}, which ends with\n{shown}")));
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Checkpoints the program, sees that it is gone, and restores it.
    fn carry(&mut self) -> Result<(), Failed> {
        self.carry_after(Duration::ZERO)
    }

    /// The same, with so much time in between.
    fn carry_after(&mut self, away: Duration) -> Result<(), Failed> {
        let begun = Instant::now();
        let images = self.scratch.path().join("images");
        let _ = fs::remove_dir_all(&images);
        let mut members = self.family.members_and_zombies();
        let sessions: BTreeSet<i32> = members.iter().filter_map(|pid| session_of(*pid)).collect();
        let done = self.engine.checkpoint(&self.declaration, self.root, &images, false);
        done.map_err(|failure| self.failed(&failure.to_string()))?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        // Those born since they were listed as well: a pid is free only when its zombie is collected.
        members.extend(sessions.into_iter().filter_map(Pid::from_raw).flat_map(session_members));
        let left = wait_gone(&members, Duration::from_secs(20));
        if !left.is_empty() {
            return Err(self.failed(&format!("still there after the checkpoint: {left:?}")));
        }
        sleep(away);
        let done = self.engine.restore(&self.declaration, self.root, &images, false);
        done.map_err(|failure| self.failed(&failure.to_string()))?;
        println!("{}: carried in {:?}", self.declaration.name, begun.elapsed());
        Ok(())
    }

    /// Waits until the program has ended by itself.
    fn wait_end(&mut self) -> Result<(), Failed> {
        let deadline = Instant::now() + LIMIT + 4 * away();
        while !self.family.members().is_empty() {
            if Instant::now() > deadline {
                return Err(self.failed("it does not end"));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn failed(&self, what: &str) -> Failed {
        format!("{}: {what}\n  its output:\n{}", self.declaration.name, tail(&self.path("output"), 20)).into()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.family.kill();
        match &mut self.child {
            Some(child) => drop(child.wait()),
            None => collect(self.root),
        }
    }
}

fn session_of(pid: Pid) -> Option<i32> {
    let stat = cryonaut_kernel::proc::Task::open(pid).and_then(|task| task.stat());
    stat.ok().map(|stat| stat.session)
}

/// Fails unless the lines are the numbers from 1 on, one after the other, and at least `least` of them. The last may
/// be half written.
fn consecutive(text: &str, least: usize) -> Result<(), Failed> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (at, line) in whole.lines().enumerate() {
        if line.trim() != (at + 1).to_string() {
            return Err(format!("line {} says '{line}'", at + 1).into());
        }
    }
    if whole.lines().count() < least {
        return Err(format!("{} lines, should be {least} at least", whole.lines().count()).into());
    }
    Ok(())
}

/// How many whole lines there are.
fn lines(text: &str) -> usize {
    text.matches('\n').count()
}
