//! The checkpointer, runc or podman is killed at random moments of a checkpoint or a restore by podman. Afterwards podman
//! can start, stop and remove the container, and nothing of it is left on the host.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Failed;
use rustix::process::{Pid, Signal, kill_process};

use super::kills::until;
use super::podman::Podman;
use super::{Host, LIMIT, Test};

pub(super) fn tests() -> Vec<Test> {
    let one = |(name, who, phase): (&'static str, Who, &'static str)| -> Test {
        (name, Box::new(move |host: &Host| rounds(host, who, phase)))
    };
    let all = [
        ("podmans_checkpointer_at_checkpoint", Who::Checkpointer, "checkpoint"),
        ("podmans_checkpointer_at_restore", Who::Checkpointer, "restore"),
        ("podmans_runtime_at_checkpoint", Who::Runtime, "checkpoint"),
        ("podmans_runtime_at_restore", Who::Runtime, "restore"),
        ("podman_at_checkpoint", Who::Podman, "checkpoint"),
        ("podman_at_restore", Who::Podman, "restore"),
    ];
    all.map(one).into()
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Checkpointer,
    Runtime,
    Podman,
}

/// Longer than our part takes on a machine that is not busy.
const LONGEST: u32 = 80_000;

fn rounds(host: &Host, who: Who, phase: &str) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let mut chance = now.subsec_nanos();
    for _ in 0..super::kills::rounds_of(2) {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pause = Duration::from_micros(u64::from((chance >> 8) % LONGEST));
        round(&podman, who, phase, pause)
            .map_err(|e| format!("{who:?} killed at {phase} after {pause:?}: {}", e.message().unwrap_or_default()))?;
    }
    Ok(())
}

fn round(podman: &Podman<'_>, who: Who, phase: &str, pause: Duration) -> Result<(), Failed> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let address = format!("92:d0:c6:{:02x}:{:02x}:01", port >> 8, port & 0xff);
    let _ = fs::remove_file(&podman.count.0);
    podman.run("c", &["--publish", &format!("127.0.0.1:{port}:80"), "--mac-address", &address])?;
    let id = podman.inspect("c", "{{.Id}}")?;
    if phase == "restore" {
        podman.checkpoint("c", &[])?;
    }
    let own = podman.own_options();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let mut running = podman
        .host
        .command("/usr/bin/podman", &[&own[..], &["container", phase, "c"]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + LIMIT;
    let mut found = None;
    while found.is_none() && Instant::now() < deadline && running.try_wait()?.is_none() {
        found = checkpointer(&id);
    }
    sleep(pause);
    let victim = match (who, found) {
        (Who::Podman, _) => Some(Pid::from_child(&running)),
        (Who::Runtime, Some((_, runtime))) => Some(runtime),
        (Who::Checkpointer, Some((ours, _))) => Some(ours),
        (_, None) => None,
    };
    // It may have ended.
    let _ = victim.map(|victim| kill_process(victim, Signal::KILL));
    if (who, phase) == (Who::Runtime, "restore") {
        help_conmon(&mut running, &id)?;
    }
    running.wait()?;
    until("our program or the runtime does not end", || checkpointer(&id).is_none() && !is_at_work(phase, &id))?;
    podman.count.so_far()?;
    match (who, phase) {
        (Who::Runtime, "restore") => clear_up_after_runc(podman.host, &id),
        // Its helpers have brought back a container of which it does not know, and never asks.
        (Who::Podman, "restore") if podman.inspect("c", "{{.State.Status}}")? != "running" => {
            let _ = podman.host.run("runc", &["delete", "--force", &id]);
        }
        _ => {}
    }
    podman.podman(&["stop", "--time", "0", "c"])?;
    podman.count.stands_still().map_err(|_| "it is stopped and counts on")?;
    // Who takes away what runc has left, as podman does at once, may take files of the container along.
    if (who, phase) != (Who::Runtime, "restore") {
        starts_and_stops(podman)?;
    }
    podman.remove("c")?;
    if (who, phase) == (Who::Runtime, "restore") {
        // Those that runc had made already; only empty ones can be removed.
        for cgroup in cgroups(&id)? {
            let _ = fs::remove_dir(cgroup);
        }
    }
    nothing_is_left(&id, port, &address)
}

/// What runc leaves when it is killed in a restore: a mount of the container's root, through which whoever removes the
/// rest would remove the container's files, and a directory by which it takes the container for one that is there.
fn clear_up_after_runc(host: &Host, id: &str) {
    let own = PathBuf::from("/run/runc").join(id);
    let _ = host.run("umount", &["-l".into(), own.join("criu-root")]);
    if !own.join("state.json").exists() {
        let _ = fs::remove_dir(own.join("criu-root"));
        let _ = fs::remove_dir(&own);
    }
}

/// Whether somebody who was called for this container, and for this, has not ended.
fn is_at_work(phase: &str, id: &str) -> bool {
    let has = |line: &[u8], word: &str| line.windows(word.len()).any(|part| part == word.as_bytes());
    let runs = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"/usr/bin/runc\0") && has(&line, phase) && has(&line, id)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().any(runs)
}

/// Our program as the runtime has called it for this container, and the runtime.
fn checkpointer(id: &str) -> Option<(Pid, Pid)> {
    let line = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        if !line(&name).starts_with(b"criu\0swrk\0") {
            return None;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?;
        let is_its_own = line(parent).windows(id.len()).any(|part| part == id.as_bytes());
        let pid = |text: &str| Pid::from_raw(text.parse().ok()?);
        is_its_own.then(|| Some((pid(&name)?, pid(parent)?))).flatten()
    })
}

/// It starts from the beginning, and stops again.
fn starts_and_stops(podman: &Podman<'_>) -> Result<(), Failed> {
    fs::remove_file(&podman.count.0)?;
    podman.podman(&["start", "c"])?;
    podman.count.goes_on(5)?;
    podman.podman(&["stop", "--time", "0", "c"])?;
    podman.count.stands_still()
}

/// If the runtime is killed when the container runs, conmon reads what it may have said until nobody has the other end of that
/// pipe, which is the container's stderr as well; podman waits for it.
fn help_conmon(podman: &mut Child, id: &str) -> Result<(), Failed> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while podman.try_wait()?.is_none() && Instant::now() < deadline {
        sleep(Duration::from_millis(5));
    }
    if podman.try_wait()?.is_none() { end_all(&cgroups(id)?) } else { Ok(()) }
}

/// Kills what is in these cgroups.
fn end_all(cgroups: &[PathBuf]) -> Result<(), Failed> {
    for cgroup in cgroups {
        for pid in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
            // It may have ended.
            let _ = Pid::from_raw(pid.parse()?).map(|pid| kill_process(pid, Signal::KILL));
        }
    }
    Ok(())
}

/// The container's cgroups that are there.
fn cgroups(id: &str) -> Result<Vec<PathBuf>, Failed> {
    super::kills::cgroups_at(&format!("libpod_parent/libpod-{id}"))
}

/// No mount, process, cgroup, network namespace or rule of the firewall.
fn nothing_is_left(id: &str, port: u16, address: &str) -> Result<(), Failed> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(mount) = mounts.lines().find(|line| line.contains(id)) {
        return Err(format!("a mount is left: {mount}").into());
    }
    if let Some(cgroup) = cgroups(id)?.first() {
        return Err(format!("a cgroup is left: {}", cgroup.display()).into());
    }
    let in_its_cgroup = |entry: fs::DirEntry| {
        fs::read_link(entry.path().join("exe")).ok()?;
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        cgroup.contains(id).then(|| entry.file_name())
    };
    if let Some(process) = fs::read_dir("/proc")?.flatten().find_map(in_its_cgroup) {
        return Err(format!("process {process:?} is left").into());
    }
    for namespace in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let inside = format!("--net={}", namespace.path().display());
        let told = Command::new("nsenter").args([&inside, "ip", "link"]).output()?;
        if String::from_utf8_lossy(&told.stdout).contains(address) {
            return Err(format!("network namespace {} is left", namespace.path().display()).into());
        }
    }
    for program in ["iptables-save", "ip6tables-save"] {
        let told = Command::new(program).output()?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let word = format!("--dport {port} ");
        if let Some(rule) = told.lines().find(|line| line.contains(&word)) {
            return Err(format!("a rule is left: {rule}").into());
        }
    }
    Ok(())
}
