//! One run of a workload: start, any number of checkpoints and restores, and the verdict.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::catalogue::{Declaration, declaration};
use crate::command::tail;
use crate::engine::Engine;
use crate::family::{Family, MARK, adopt_orphans, collect, session_members, wait_gone};
use crate::fingerprint::Baseline;

const SETUP_LIMIT: Duration = Duration::from_secs(20);
const CHECK_LIMIT: Duration = Duration::from_secs(30);
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// A workload that did not come through: in which step, why, and the end of the logs that bear on it.
#[derive(Debug, thiserror::Error)]
#[error("{workload}, {step}: {what}\n{logs}")]
pub struct Failure {
    /// `AREA/NAME`.
    pub workload: String,
    /// start, checkpoint, restore, fingerprint or check.
    pub step: &'static str,
    /// The cause.
    pub what: String,
    /// The last lines of what the workload and the engine wrote.
    pub logs: String,
}

/// A running (or checkpointed) workload. Dropping it ends every process that it consists of.
#[derive(Debug)]
pub struct Workload {
    declaration: Declaration,
    /// The engine that checkpoints, and the one that restores.
    engines: (Engine, Engine),
    directory: PathBuf,
    /// Kept on failure when CRYONAUT_KEEP is set, else removed with the value.
    _scratch: Option<TempDir>,
    family: Family,
    root: Pid,
    /// The root process while it is our own child, that is until it is checkpointed for the first time.
    child: Option<Child>,
    checkpoints: u32,
    baseline: Option<Baseline>,
    /// Put back before the turn is over.
    _sysctl: Option<Sysctl>,
    /// Held while a workload uses what the whole machine has only one of.
    _turn: Option<File>,
}

/// A setting of the host that is another for a while.
#[derive(Debug)]
struct Sysctl {
    path: PathBuf,
    before: String,
}

impl Sysctl {
    fn set(name: &str, value: &str) -> std::io::Result<Self> {
        let path = Path::new("/proc/sys").join(name);
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("{} stays as it is: {error}", self.path.display());
        }
    }
}

impl Workload {
    /// Starts the workload `AREA/NAME` and waits until its state is set up; [`Engine::own`] will carry it.
    ///
    /// # Errors
    /// When there is no such workload, or it does not get ready.
    pub fn start(name: &str) -> Result<Self, Failure> {
        let found = declaration(name).ok_or_else(|| Failure {
            workload: name.to_owned(),
            step: "start",
            what: "there is no such workload".to_owned(),
            logs: String::new(),
        })?;
        Self::start_with(found, (Engine::own(), Engine::own()), false)
    }

    /// Starts a workload that will be checkpointed by the first engine and restored by the second. With `lose` it
    /// will destroy its own state before it checks it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_with(declaration: Declaration, engines: (Engine, Engine), lose: bool) -> Result<Self, Failure> {
        let fail =
            |what: String| Failure { workload: declaration.name.clone(), step: "start", what, logs: String::new() };
        adopt_orphans();
        let turn = take_turn(&declaration).map_err(|e| fail(e.to_string()))?;
        let set = |(name, value): &(String, String)| Sysctl::set(name, value).map_err(|e| fail(format!("{name}: {e}")));
        let sysctl = declaration.sysctl.as_ref().map(set).transpose()?;
        let scratch = TempDir::with_prefix("cryonaut-test-").map_err(|e| fail(e.to_string()))?;
        let directory = scratch.path().join("state");
        let child = launch(&declaration, &directory, lose)
            .map_err(|e| fail(format!("{}: {e}", declaration.program.display())))?;
        let root = Pid::from_child(&child);
        let keep = std::env::var_os("CRYONAUT_KEEP").is_some();
        let mut started = Self {
            family: Family::of(scratch.path()),
            declaration,
            engines,
            directory,
            _scratch: if keep {
                let _ = scratch.keep();
                None
            } else {
                Some(scratch)
            },
            root,
            child: Some(child),
            checkpoints: 0,
            baseline: None,
            _sysctl: sysctl,
            _turn: turn,
        };
        started.await_line("start", SETUP_LIMIT, &["ready"])?;
        Ok(started)
    }

    /// What the workload declares about itself.
    pub fn declaration(&self) -> &Declaration {
        &self.declaration
    }

    /// The pid of the root process.
    pub fn pid(&self) -> Pid {
        self.root
    }

    /// The directory of the last checkpoint's images.
    pub fn images(&self) -> PathBuf {
        self.directory.with_file_name(format!("images{}", self.checkpoints))
    }

    /// The directory for the next checkpoint's images.
    pub(crate) fn next_images(&mut self) -> PathBuf {
        self.checkpoints += 1;
        self.images()
    }

    /// Its processes.
    pub(crate) fn family(&self) -> &Family {
        &self.family
    }

    /// The engine that checkpoints, and the one that restores.
    pub(crate) fn engines(&self) -> &(Engine, Engine) {
        &self.engines
    }

    /// Takes note that a checkpoint has ended the tree: its dead are collected, also those that come to us meanwhile.
    /// Returns what is still there after a while.
    pub(crate) fn bury(&mut self, mut members: Vec<Pid>) -> Vec<Pid> {
        if let Some(mut child) = self.child.take() {
            let ended = wait_child(&mut child, EXIT_LIMIT);
            if !ended {
                self.child = Some(child);
            }
        }
        // Also the zombies must be gone before their pids can be given out again, and children born meanwhile.
        members.extend(session_members(self.root));
        wait_gone(&members, EXIT_LIMIT)
    }

    /// Checkpoints the workload; afterwards no process of it is left.
    ///
    /// # Errors
    /// When the engine fails, or leaves a process.
    pub fn checkpoint(&mut self) -> Result<(), Failure> {
        let members = self.family.members_and_zombies();
        self.dump(false)?;
        let left = self.bury(members);
        if left.is_empty() {
            return Ok(());
        }
        Err(self.failure("checkpoint", format!("these processes are still there after the checkpoint: {left:?}")))
    }

    /// Somebody else has checkpointed it: its dead are collected.
    pub fn collect(&mut self) {
        let members = self.family.members_and_zombies();
        self.bury(members);
    }

    /// Whether any of its processes lives.
    pub fn is_there(&self) -> bool {
        !self.family.members().is_empty()
    }

    /// Checkpoints the workload, which goes on running.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn checkpoint_leave_running(&mut self) -> Result<(), Failure> {
        self.dump(true)
    }

    fn dump(&mut self, leave_running: bool) -> Result<(), Failure> {
        self.checkpoints += 1;
        let images = self.images();
        let done = self.engines.0.checkpoint(&self.declaration, self.root, &images, leave_running);
        done.map_err(|failure| self.failure("checkpoint", failure.to_string()))?;
        if images.join("inventory.img").exists() {
            return Ok(());
        }
        Err(self.failure(
            "checkpoint",
            format!("the engine reported success, but {} holds no inventory.img", images.display()),
        ))
    }

    /// Restores the last checkpoint.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn restore(&mut self) -> Result<(), Failure> {
        let done = self.engines.1.restore(&self.declaration, self.root, &self.images(), false);
        done.map_err(|failure| self.failure("restore", failure.to_string()))
    }

    /// The same, and its memory comes while it runs.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn restore_lazily(&mut self) -> Result<(), Failure> {
        let done = self.engines.1.restore(&self.declaration, self.root, &self.images(), true);
        done.map_err(|failure| self.failure("lazy restore", failure.to_string()))
    }

    /// Whether some memory of the tree has not come yet.
    pub fn misses_memory(&self) -> bool {
        let watched = |pid: &Pid| {
            let smaps = fs::read_to_string(format!("/proc/{}/smaps", pid.as_raw_nonzero())).unwrap_or_default();
            smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" um"))
        };
        self.family.members().iter().any(watched)
    }

    /// Waits until all memory has come.
    ///
    /// # Errors
    /// When some does not.
    pub fn await_memory(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + CHECK_LIMIT;
        while self.misses_memory() {
            if Instant::now() > deadline {
                return Err(self.failure("lazy restore", "memory is still missing".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Looks at the tree, which is at rest, so that [`Workload::compare`] can tell what has become of it.
    pub fn fingerprint(&mut self) {
        if self.declaration.restless.is_some() {
            return;
        }
        let members = || self.family.members_and_zombies();
        self.baseline = Some(Baseline::take(members));
    }

    /// Looks again: nothing may differ from the fingerprint but what must.
    ///
    /// # Errors
    /// When something does.
    pub fn compare(&self) -> Result<(), Failure> {
        let Some(baseline) = &self.baseline else {
            return Ok(());
        };
        let found = baseline.compare(|| self.family.members_and_zombies(), &self.declaration.differs);
        if found.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 40;
        let mut lines: Vec<String> = found.iter().take(SHOWN).map(|difference| format!("\n    {difference}")).collect();
        if found.len() > SHOWN {
            lines.push(format!("\n    and {} more", found.len() - SHOWN));
        }
        Err(self.failure("fingerprint", format!("differs from before:{}", lines.concat())))
    }

    /// Asks the workload for its verdict and waits for its end.
    ///
    /// # Errors
    /// When it says that state was lost, says nothing in time, or does not end.
    pub fn finish(self) -> Result<(), Failure> {
        let watch = self.go()?;
        self.await_verdict(&watch)
    }

    /// Asks the workload for its verdict. Gives a pidfd of its root.
    ///
    /// # Errors
    /// When it is not running.
    pub(crate) fn go(&self) -> Result<OwnedFd, Failure> {
        let watch = pidfd_open(self.root, PidfdFlags::empty());
        let watch =
            watch.map_err(|e| self.failure("check", format!("root process {:?} is not running: {e}", self.root)))?;
        File::create(self.directory.join("go")).map_err(|e| self.failure("check", e.to_string()))?;
        Ok(watch)
    }

    /// Waits for the verdict that it was asked for, and for its end.
    ///
    /// # Errors
    /// As [`Workload::finish`].
    pub(crate) fn await_verdict(mut self, watch: &OwnedFd) -> Result<(), Failure> {
        self.await_line("check", CHECK_LIMIT, &["ok"])?;
        if !wait_end(watch, EXIT_LIMIT) {
            return Err(self.failure("check", "said ok but did not end".to_owned()));
        }
        Ok(())
    }

    /// Waits until the last line that the workload said is one of `wanted`.
    fn await_line(&mut self, step: &'static str, limit: Duration, wanted: &[&str]) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.root_ended();
            let said = fs::read_to_string(self.directory.join("result")).unwrap_or_default();
            if let Some(complaint) = said.lines().find(|line| line.starts_with("FAIL")) {
                return Err(self.failure(step, complaint.to_owned()));
            }
            if said.ends_with('\n') && said.lines().last().is_some_and(|line| wanted.contains(&line)) {
                return Ok(());
            }
            if ended {
                return Err(self.failure(step, format!("ended without a word; it had said {said:?}")));
            }
            if Instant::now() > deadline {
                let state = self.describe_members();
                return Err(self.failure(
                    step,
                    format!("not {wanted:?} within {} s; it had said {said:?}\n{state}", limit.as_secs()),
                ));
            }
            sleep(Duration::from_millis(2));
        }
    }

    fn root_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(Some(_)) | Err(_)),
            None => pidfd_open(self.root, PidfdFlags::empty()).map_or(true, |watch| wait_end(&watch, Duration::ZERO)),
        }
    }

    /// Where each process of the family hangs, for the message about one that did not answer.
    pub(crate) fn describe_members(&self) -> String {
        let one = |pid: Pid| {
            let field =
                |name: &str| fs::read_to_string(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default();
            let stat = field("stat");
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?');
            format!(
                "    pid {} {} state {state} syscall {}",
                pid.as_raw_nonzero(),
                field("comm").trim(),
                field("syscall")
            )
        };
        self.family.members().into_iter().map(one).collect()
    }

    pub(crate) fn failure(&self, step: &'static str, what: String) -> Failure {
        let kept = if self._scratch.is_some() {
            "    (CRYONAUT_KEEP=1 keeps the images and logs)\n".to_owned()
        } else {
            format!("    kept: {}\n", self.directory.parent().unwrap_or(Path::new("/")).display())
        };
        let logs = format!("  log of the workload:\n{}{kept}", tail(&self.directory.join("log"), 20));
        Failure { workload: self.declaration.name.clone(), step, what, logs }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.family.kill();
        if let Some(child) = &mut self.child {
            // Killed just now, or ended by itself: either way it only has to be reaped.
            wait_child(child, EXIT_LIMIT);
        } else {
            // Restored, and left to us by the engine.
            collect(self.root);
        }
    }
}

/// Terminals are numbered by the machine: while one is checkpointed and gone, another test's would take its number. So
/// those workloads go one after the other, also between test processes; and so do those that need the same setting.
fn take_turn(workload: &Declaration) -> std::io::Result<Option<File>> {
    let terminal = ["tty/", "terminals/"].iter().any(|area| workload.name.starts_with(area));
    let what = match &workload.sysctl {
        _ if terminal => "terminals".to_owned(),
        Some((name, _)) => name.replace('/', "-"),
        None => return Ok(None),
    };
    let lock = File::create(std::env::temp_dir().join(format!("cryonaut-test-{what}.lock")))?;
    lock.lock()?;
    Ok(Some(lock))
}

/// Starts the program in its own directory, which any user that it turns into may write to.
fn launch(declaration: &Declaration, directory: &Path, lose: bool) -> std::io::Result<Child> {
    fs::create_dir(directory)?;
    for open in [directory.parent().unwrap_or(directory), directory] {
        fs::set_permissions(open, Permissions::from_mode(0o777))?;
    }
    if let Some(script) = &declaration.script {
        fs::write(directory.join("script"), script)?;
    }
    let result = File::create(directory.join("result"))?;
    result.set_permissions(Permissions::from_mode(0o666))?;
    let log = File::create(directory.join("log"))?;
    Command::new(&declaration.program)
        .arg(directory)
        .args(lose.then_some("--lose"))
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env(MARK, directory.parent().unwrap_or(directory))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

fn wait_child(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

/// Whether the process ends within `limit` (a zombie has ended).
fn wait_end(process: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut watched = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut watched, Some(&limit)), Ok(1))
}
