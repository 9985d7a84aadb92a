//! The checkpointer or its runtime is killed at random moments. Afterwards the runtime can still do something with the
//! container, and nothing of it is left that the runtime would not have left by itself.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Failed;
use rustix::process::{Pid, Signal, kill_process};

use super::runc::{Container, USUAL};
use super::{Host, LIMIT, Test, test};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test("checkpointer_at_checkpoint", |host| rounds(host, Who::Checkpointer, Phase::Checkpoint)),
        test("checkpointer_at_restore", |host| rounds(host, Who::Checkpointer, Phase::Restore)),
        test("runtime_at_checkpoint", |host| rounds(host, Who::Runtime, Phase::Checkpoint)),
        test("runtime_at_restore", |host| rounds(host, Who::Runtime, Phase::Restore)),
    ]
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Checkpointer,
    Runtime,
}

/// And in what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Checkpoint,
    Restore,
}

/// How many times, each with a new container: as CRYONAUT_CONTAINER_KILLS says, or else this often.
pub(super) fn rounds_of(usual: u32) -> u32 {
    std::env::var("CRYONAUT_CONTAINER_KILLS").ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

/// Longer than our part takes.
const LONGEST: u32 = 120_000;

fn rounds(host: &Host, who: Who, phase: Phase) -> Result<(), Failed> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let mut chance = now.subsec_nanos();
    for _ in 0..rounds_of(5) {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pause = Duration::from_micros(u64::from((chance >> 8) % LONGEST));
        round(host, who, phase, pause)
            .map_err(|e| format!("{who:?} killed at {phase:?} after {pause:?}: {}", e.message().unwrap_or_default()))?;
        for directory in ["images", "rootfs"] {
            fs::remove_dir_all(host.at(directory))?;
        }
    }
    Ok(())
}

fn round(host: &Host, who: Who, phase: Phase, pause: Duration) -> Result<(), Failed> {
    let container = Container::start(host, USUAL)?;
    let images = host.at("images").display().to_string();
    let mut how = vec!["checkpoint"];
    if phase == Phase::Restore {
        container.checkpoint(&[])?;
        how = vec!["restore", "--detach"];
    }
    how.extend(["--image-path", &images, "--work-path", &images, &host.name]);
    let mut runtime = host
        .command("runc", &[&["--root", &host.at("runc").display().to_string()], &how[..]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The first is asked for its version alone.
    checkpointer_of(&mut runtime)?;
    sleep(pause);
    let ours = checkpointer_of(&mut runtime)?;
    match (who, ours) {
        (Who::Runtime, _) => drop(kill_process(Pid::from_child(&runtime), Signal::KILL)),
        // It may have ended.
        (Who::Checkpointer, Some(ours)) => drop(kill_process(ours, Signal::KILL)),
        (Who::Checkpointer, None) => {}
    }
    runtime.wait()?;
    if let Some(ours) = ours {
        until("our program does not end", || {
            !fs::exists(format!("/proc/{}/fdinfo", ours.as_raw_nonzero())).unwrap_or(true)
        })?;
    }
    // It goes on, or is at its end.
    let before = container.count.so_far()?;
    until("it neither goes on nor is it stopped", || {
        let lives = container.runc(&["state", &host.name]).is_ok_and(|state| state.contains("\"running\""));
        !lives || container.count.so_far().is_ok_and(|now| now > before + 5)
    })?;
    container.count.so_far()?;
    if who == Who::Runtime && phase == Phase::Restore {
        // Runc's own: it would delete the files of the container through it.
        let _ = host.run("umount", &["-l".into(), host.at("runc").join(&host.name).join("criu-root")]);
    }
    // A runtime that was killed in a restore may have written no state yet.
    let known = host.at("runc").join(&host.name).join("state.json").exists();
    let deleted = container.runc(&["delete", "--force", &host.name]);
    if known {
        deleted?;
    } else {
        let cgroups = cgroups_of(host)?;
        // Cgroups that it had made already; only empty ones can be removed, and what was killed takes a moment to end.
        until("something stays in its cgroups", || {
            cgroups.iter().all(|cgroup| !cgroup.exists() || fs::remove_dir(cgroup).is_ok())
        })?;
    }
    nothing_is_left(host)
}

/// Our program, once the runtime has started it for its purpose; `None` if the runtime has ended.
fn checkpointer_of(runtime: &mut Child) -> Result<Option<Pid>, Failed> {
    let deadline = Instant::now() + LIMIT;
    while runtime.try_wait()?.is_none() && Instant::now() < deadline {
        for task in fs::read_dir(format!("/proc/{}/task", runtime.id())).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                if line.starts_with(b"criu\0swrk\0") {
                    return Ok(Pid::from_raw(child.parse()?));
                }
            }
        }
    }
    Ok(None)
}

pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Failed> {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(what.into());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The container's cgroups that are there.
fn cgroups_of(host: &Host) -> Result<Vec<PathBuf>, Failed> {
    cgroups_at(&host.name)
}

/// The cgroups with this path that are there, of all hierarchies once.
pub(super) fn cgroups_at(path: &str) -> Result<Vec<PathBuf>, Failed> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")?.flatten();
    // Several names of one hierarchy are links.
    let real = hierarchies.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(real.map(|hierarchy| hierarchy.path().join(path)).filter(|cgroup| cgroup.exists()).collect())
}

/// No mount, cgroup or process.
fn nothing_is_left(host: &Host) -> Result<(), Failed> {
    let own = host.at("").display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(mount) = mounts.lines().find(|line| line.contains(own.trim_end_matches('/'))) {
        return Err(format!("a mount is left: {mount}").into());
    }
    if let Some(cgroup) = cgroups_of(host)?.first() {
        return Err(format!("a cgroup is left: {}", cgroup.display()).into());
    }
    let running = |entry: fs::DirEntry| {
        // Of a zombie there is none: whoever has adopted it takes its end in time.
        fs::read_link(entry.path().join("exe")).ok()?;
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        cgroup.contains(&host.name).then(|| entry.file_name())
    };
    match fs::read_dir("/proc")?.flatten().find_map(running) {
        None => Ok(()),
        Some(process) => Err(format!("process {process:?} is left").into()),
    }
}
