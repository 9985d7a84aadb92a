//! Runtimes of a newer Debian than the host's, and docker of this one, whose daemon would disturb the others: in a host of
//! their own, that is a root file system under an overlay, in private namespaces of every kind but users and in cgroups of
//! its own, laid out as version 2, version 1 or both.
//!
//! `scripts/newer-runtimes.sh` and `scripts/docker.sh` bring the root file systems in.

mod containerd;
mod cri;
mod docker;
mod lxc;
mod podman;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

use super::{COUNT, Count, LIMIT};
use crate::command::tail;

/// What a host begins with.
const BEGINNING: &str = include_str!("host.sh");
/// Where programs are in it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A root file system: its name, and the script that brings it in.
type Root = (&'static str, &'static str);

const NEWER: Root = ("newer-runtimes", "scripts/newer-runtimes.sh");
const DOCKER: Root = ("docker", "scripts/docker.sh");

/// A test in a host with one layout of cgroups.
type Body = fn(&NewerHost) -> Result<(), Failed>;

/// `newer::RUNTIME::NAME`, with `program` in the place of criu. The whole `main` of a test program.
pub fn suite(program: &Path) -> ExitCode {
    let all = [
        ("podman", &NEWER, podman::TESTS),
        ("containerd", &NEWER, containerd::TESTS),
        ("cri", &NEWER, cri::TESTS),
        ("lxc", &NEWER, lxc::TESTS),
        ("docker", &DOCKER, docker::TESTS),
        ("docker_newest", &NEWER, docker::NEWEST),
    ];
    let all = all.into_iter().flat_map(|(runtime, root, tests)| tests.iter().map(move |test| (runtime, root, test)));
    let trial = |(runtime, root, (name, layout, body)): (&str, &'static Root, &'static (&str, &str, Body))| {
        let program = program.to_owned();
        Trial::test(format!("newer::{runtime}::{name}"), move || body(&NewerHost::start(&program, root, layout)?))
    };
    libtest_mimic::run(&Arguments::from_args(), all.map(trial).collect()).exit_code()
}

/// A host. Dropping it ends everything in it.
#[derive(Debug)]
struct NewerHost {
    own: TempDir,
    /// Its cgroups, one in each hierarchy.
    cgroups: Vec<PathBuf>,
    /// Holds the namespaces; ends when its input does.
    holder: Child,
    /// The first process in them.
    pid: String,
    /// What a container counts into.
    count: Count,
}

impl NewerHost {
    fn start(program: &Path, (root, script): &Root, layout: &str) -> Result<Self, Failed> {
        let cache = std::env::var_os("CRYONAUT_CACHE").map_or_else(|| "/var/cache/cryonaut".into(), PathBuf::from);
        let root = cache.join(root);
        if !root.is_dir() {
            return Err(format!("{} is not there: {script} brings it in", root.display()).into());
        }
        let own = TempDir::with_prefix("cryonaut-newer-")?;
        let cgroups = make_cgroups(&own.path().file_name().unwrap_or_default().to_string_lossy())?;
        let errors = own.path().join("errors");
        let mut command = within(&cgroups, "unshare");
        command.args(["-m", "-p", "-f", "-i", "-u", "-n", "-C", "--kill-child", "bash", "-c", BEGINNING, "host"]);
        command.args([root.as_os_str(), own.path().as_os_str(), OsStr::new(layout), program.as_os_str()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors)?);
        let mut holder = command.spawn()?;
        let mut pid = String::new();
        let said = holder.stdout.take().ok_or("no output")?;
        BufReader::new(said).read_line(&mut pid)?;
        let count = Count(own.path().join("upper").join(COUNT));
        let host = NewerHost { own, cgroups, holder, pid: pid.trim().to_owned(), count };
        match host.pid.is_empty() {
            true => Err(format!("the host does not start:\n{}", tail(&errors, 10)).into()),
            false => Ok(host),
        }
    }

    /// Runs a line of the shell in it; what that has said.
    fn run(&self, line: &str) -> Result<String, Failed> {
        let [said, errors] = ["said", "errors"].map(|name| self.own.path().join(name));
        let mut command = within(&self.cgroups, "nsenter");
        command.args(["-t", &self.pid, "-m", "-p", "-i", "-u", "-n", "-C", "-r", "-w"]);
        let limit = LIMIT.as_secs().to_string();
        // What hangs in there would not end with nsenter.
        command.args(["timeout", "-k", "1", &limit, "bash", "-c", line]);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        command.stdin(Stdio::null()).stdout(File::create(&said)?).stderr(File::create(&errors)?);
        let status = command.status()?;
        match status.success() {
            true => Ok(fs::read_to_string(&said)?.trim_end().to_owned()),
            false => Err(format!("{line}: {status}\n{}{}", tail(&errors, 20), self.logs()).into()),
        }
    }

    /// The pid, outside of it, of a process that it knows by this one.
    fn pid_of(&self, inside: &str) -> Result<i32, Failed> {
        let own = self.own.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_it = |entry: &fs::DirEntry| {
            let text = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let status = text("status");
            let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            pids.split_whitespace().nth(1) == Some(inside) && text("cgroup").contains(&own)
        };
        let found = fs::read_dir("/proc")?.flatten().find(is_it);
        let found = found.ok_or_else(|| format!("no process is {inside} in the host"))?;
        Ok(found.file_name().to_string_lossy().parse()?)
    }

    /// The ends of what our program has said in podman's storage.
    fn logs(&self) -> String {
        let all = fs::read_dir(self.own.path().join("containers/storage/overlay-containers"));
        let containers = all.into_iter().flatten().flatten().map(|entry| entry.path().join("userdata"));
        let logs = containers.flat_map(|dir| ["dump.log", "restore.log"].map(|log| dir.join(log)));
        logs.filter(|log| log.exists()).map(|log| format!("{}:\n{}", log.display(), tail(&log, 8))).collect()
    }
}

impl Drop for NewerHost {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && !matches!(self.holder.try_wait(), Ok(Some(_))) {
            sleep(Duration::from_millis(5));
        }
        // Both fail if it has ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        for cgroup in &self.cgroups {
            remove_cgroups(cgroup);
        }
    }
}

/// Makes a cgroup of this name in every hierarchy of the host, as far as it is there.
fn make_cgroups(name: &str) -> Result<Vec<PathBuf>, Failed> {
    let mut made = Vec::new();
    for entry in fs::read_dir("/sys/fs/cgroup")? {
        let hierarchy = entry?.path();
        if !hierarchy.join("cgroup.procs").exists() {
            continue;
        }
        let own = hierarchy.join(name);
        fs::create_dir(&own)?;
        // A new cpuset takes nobody before it has processors; LXC wants that of its own ones to have some.
        for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| own.join(file).exists()) {
            fs::write(own.join(file), fs::read(hierarchy.join(file))?)?;
        }
        if own.join("cpuset.cpus").exists() && own.join("cgroup.clone_children").exists() {
            fs::write(own.join("cgroup.clone_children"), "1")?;
        }
        made.push(own);
    }
    Ok(made)
}

/// Directories of cgroups go with their last process, which may be a moment after it is waited for.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while fs::remove_dir(dir).is_err() && dir.exists() && Instant::now() < deadline {
        sleep(Duration::from_millis(10));
    }
}

/// A program that begins in these cgroups.
fn within(cgroups: &[PathBuf], program: &str) -> Command {
    let enter = |cgroup: &PathBuf| format!("echo $$ >'{}/cgroup.procs' || exit 1; ", cgroup.display());
    let line = cgroups.iter().map(enter).collect::<String>() + "exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", &line, "sh", program]);
    command
}
