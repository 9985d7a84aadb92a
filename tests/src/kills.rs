//! The engine killed with SIGKILL at random moments, over workloads that check themselves.
//!
//! Whatever the moment, the tree goes on as if nothing had happened, or all of it is gone and its image restores. Half
//! the blows fall after a random time, half at the entry or exit of a random system call of the engine, which spreads
//! them over its work however little time a part of it takes. CRYONAUT_KILLS says how many there are in all, and
//! CRYONAUT_SEED repeats a run.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Failed, Trial};
use rustix::process::Pid;

use crate::catalogue::declaration;
use crate::engine::Engine;
use crate::firewall::{Ports, connections, rule_about};
use crate::picture::Picture;
use crate::strike::{Blow, count_stops, strike};
use crate::suite::run;
use crate::workload::{Failure, Workload};

/// Trees of one and of many processes and threads, in the states that a kill could spoil.
const WORKLOADS: [&str; 35] = [
    "tree/ceaseless",
    "tree/counter",
    "memory/large",
    "memory/large_alone",
    "memory/large_limited",
    "memory/writer_copied",
    "memory/cow_many",
    "memory/cow_many_copied",
    "tree/family",
    "tree/share_files",
    "tree/share_memory_generations",
    "tree/share_memory_threads",
    "threads/many",
    "threads/leader_exited_family",
    "threads/registers_vector",
    "threads/signal_masks",
    "threads/seccomp_filter",
    "calls/futex",
    "fds/pipe_data",
    "fds/io_uring_polled",
    "fds/io_uring_registered_single",
    "files/ghost",
    "mounts/hidden",
    "files/hard_linked",
    "tree/sessions",
    "namespaces/pid_family",
    "tree/stopped",
    "signals/alternate_stack",
    "timers/timerfd",
    "sockets/tcp_half_closed",
    "sockets/tcp_processes",
    "sockets/tcp_iptables",
    "sockets/tcp_waiting",
    "sockets/tcp_ended_unread",
    "sockets/tcp_urgent",
];
/// With peers outside of the tree, whom nothing of a checkpoint may reach. What a restore that is killed lets them hear,
/// between the moment in which its connections may speak and the verdict, nobody can take back (ARCHITECTURE.md).
const CHECKPOINTED: [&str; 2] = ["sockets/tcp_outside", "sockets/tcp_outside_iptables"];

/// A workload waits for five minutes at most, so it is started anew from time to time.
const BLOWS_PER_START: u64 = 10;
/// How long a tree may take to be back in its old state, or gone.
const LIMIT: Duration = Duration::from_secs(10);
const DEFAULT_KILLS: u64 = 60;

/// `checkpoint::AREA::NAME` and `restore::AREA::NAME`.
///
/// # Panics
/// If CRYONAUT_KILLS or CRYONAUT_SEED is no number, or a workload is missing.
pub fn kills(own: &Engine) -> ExitCode {
    let number = |name: &str| env::var(name).ok().map(|v| v.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let all = number("CRYONAUT_KILLS").unwrap_or(DEFAULT_KILLS);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_micros() as u64);
    let seed = number("CRYONAUT_SEED").unwrap_or(now);
    let bodies = [("checkpoint", checkpoints as Body), ("restore", restores as Body)];
    let both = WORKLOADS.iter().flat_map(|name| bodies.map(|body| (*name, body)));
    let parts: Vec<_> = both.chain(CHECKPOINTED.iter().map(|name| (*name, bodies[0]))).collect();
    let mut tests = Vec::new();
    for (part, (name, (what, body))) in (0u64..).zip(&parts).map(|(part, (name, body))| (part, (*name, *body))) {
        let count = all / parts.len() as u64 + u64::from(part < all % parts.len() as u64);
        let own = own.clone();
        tests.push(Trial::test(format!("{what}::{}", name.replace('/', "::")), move || {
            let mut chance = Chance(seed ^ part << 48);
            let mut left = count;
            while left > 0 {
                let blows = left.min(BLOWS_PER_START);
                body(&own, name, blows, &mut chance)
                    .map_err(|failure| Failed::from(format!("CRYONAUT_SEED={seed}: {failure}")))?;
                left -= blows;
            }
            Ok(())
        }));
    }
    run(tests)
}

type Body = fn(&Engine, &str, u64, &mut Chance) -> Result<(), Failure>;

/// Numbers by chance (SplitMix64).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }
}

/// How long a run takes that nobody disturbs, and how many stops at system calls it has.
#[derive(Debug)]
struct Course {
    time: Duration,
    stops: u64,
}

impl Course {
    fn blow(&self, chance: &mut Chance) -> Blow {
        // A little beyond the end, so that the last moments come up too.
        match chance.below(2) {
            0 => Blow::After(Duration::from_nanos(chance.below(self.time.as_nanos() as u64 * 11 / 10))),
            _ => Blow::AtStop(1 + chance.below(self.stops + self.stops / 50)),
        }
    }
}

fn start(own: &Engine, name: &str) -> Result<Workload, Failure> {
    let found = declaration(name).unwrap_or_else(|| panic!("{name}: there is no such workload"));
    Workload::start_with(found, (own.clone(), own.clone()), false)
}

/// What became of a tree.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Unharmed,
    Gone,
}

/// Waits until the tree is as in `before`, or gone.
fn settle(workload: &Workload, before: &Picture, take: fn(&[Pid]) -> Picture) -> Result<Fate, String> {
    let begun = Instant::now();
    loop {
        let members = workload.family().members();
        let now = take(&members);
        if members.is_empty() {
            return Ok(Fate::Gone);
        }
        let Some(difference) = before.difference(&now) else {
            return Ok(Fate::Unharmed);
        };
        if begun.elapsed() > LIMIT {
            return Err(format!("{difference}\n{}", workload.describe_members()));
        }
        sleep(Duration::from_millis(1));
    }
}

/// The names in the directory that the workload works in.
fn names(workload: &Workload) -> Vec<String> {
    let listed = fs::read_dir(workload.images().with_file_name("state"));
    let mut all: Vec<String> =
        listed.into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    all.sort_unstable();
    all
}

fn remove_links(workload: &Workload, before: &[String]) {
    let is_new_link = |name: &String| name.starts_with("link_remap.") && !before.contains(name);
    for name in names(workload).iter().filter(|name| is_new_link(name)) {
        let _ = fs::remove_file(workload.images().with_file_name("state").join(name));
    }
}

/// Waits until no name is there that was not in `before`.
fn no_new_names(workload: &Workload, before: &[String]) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let new: Vec<String> = names(workload).into_iter().filter(|name| !before.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            return Err(format!("files are left behind: {new:?}"));
        }
        sleep(Duration::from_millis(1));
    }
}

/// Nothing half alive has had time to notice anything.
fn no_complaint(workload: &Workload) -> Result<(), String> {
    let said = fs::read_to_string(workload.images().with_file_name("state").join("result")).unwrap_or_default();
    match said.lines().find(|line| line.starts_with("FAIL")) {
        Some(complaint) => Err(format!("a part of the tree ran on: {complaint}")),
        None => Ok(()),
    }
}

/// Waits until no rule of the firewall is about the tree's connections.
fn no_rules(connections: &BTreeSet<Ports>) -> Result<(), String> {
    let begun = Instant::now();
    while let Some(rule) = rule_about(connections) {
        if begun.elapsed() > LIMIT {
            return Err(format!("a rule of the firewall is left behind: {rule}"));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn explain<T>(workload: &Workload, step: &'static str, blow: Blow, result: Result<T, String>) -> Result<T, Failure> {
    result.map_err(|what| workload.failure(step, format!("after a kill at {blow:?}: {what}")))
}

fn checkpoints(own: &Engine, name: &str, blows: u64, chance: &mut Chance) -> Result<(), Failure> {
    let mut workload = start(own, name)?;
    let course = checkpoint_course(&mut workload)?;
    for _ in 0..blows {
        let members = workload.family().members();
        let (before, dead) = (Picture::of(&members), workload.family().members_and_zombies());
        let connections = connections(&members);
        let before_names = names(&workload);
        let leave_running = chance.below(4) == 0;
        let blow = course.blow(chance);
        let images = workload.next_images();
        let engine = workload.engines().0.clone();
        let mut command = engine.checkpoint_command(workload.declaration(), workload.pid(), &images, leave_running);
        let struck = strike(&mut command, &images.with_extension("log"), blow).map_err(|e| e.to_string());
        explain(&workload, "checkpoint", blow, struck)?;
        let fate = settle(&workload, &before, Picture::of);
        match explain(&workload, "checkpoint", blow, fate)? {
            Fate::Unharmed => {
                // A complete image has its links, which go with it.
                if images.join("inventory.img").exists() {
                    remove_links(&workload, &before_names);
                }
                let left = nothing_hidden(&images)
                    .and_then(|()| no_new_names(&workload, &before_names))
                    .and_then(|()| no_rules(&connections));
                explain(&workload, "checkpoint", blow, left)?;
            }
            Fate::Gone => {
                let left = workload.bury(dead);
                let seen = all_gone(&left, &images).and_then(|()| no_complaint(&workload));
                explain(&workload, "checkpoint", blow, seen)?;
                workload.restore()?;
                explain(&workload, "restore", blow, no_rules(&connections))?;
            }
        }
    }
    workload.finish()
}

fn all_gone(left: &[Pid], images: &Path) -> Result<(), String> {
    if !left.is_empty() {
        return Err(format!("these are left: {left:?}"));
    }
    if !images.join("inventory.img").exists() {
        return Err("the tree is gone and there is no image".into());
    }
    nothing_hidden(images)
}

/// The directory of an image holds a whole image, or nothing of ours at all.
fn nothing_hidden(images: &Path) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let names: Vec<String> = fs::read_dir(images)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let whole = names.iter().any(|name| name == "inventory.img");
        if names.is_empty() || whole && !names.iter().any(|name| name.starts_with('.')) {
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            return Err(format!("files are left behind: {names:?}"));
        }
        sleep(Duration::from_millis(1));
    }
}

fn checkpoint_course(workload: &mut Workload) -> Result<Course, Failure> {
    let before = names(workload);
    let begun = Instant::now();
    workload.checkpoint_leave_running()?;
    let time = begun.elapsed();
    let images = workload.next_images();
    let engine = workload.engines().0.clone();
    let mut command = engine.checkpoint_command(workload.declaration(), workload.pid(), &images, true);
    let stops = count_stops(&mut command, &images.with_extension("log"));
    let stops = stops.map_err(|e| workload.failure("checkpoint", e.to_string()))?;
    remove_links(workload, &before);
    Ok(Course { time, stops })
}

/// Ids of sessions and groups whose leader is no more: a restore has helpers with these pids.
fn lost_leaders(members: &[Pid]) -> Vec<Pid> {
    let ids = members.iter().flat_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default().to_owned();
        // State, parent, then group and session.
        fields.split(' ').skip(2).take(2).filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect::<Vec<_>>()
    });
    ids.filter(|id| rustix::process::test_kill_process(*id).is_err()).collect()
}

fn restores(own: &Engine, name: &str, blows: u64, chance: &mut Chance) -> Result<(), Failure> {
    let mut workload = start(own, name)?;
    workload.checkpoint()?;
    let begun = Instant::now();
    workload.restore()?;
    let time = begun.elapsed();
    let take = |members: &[Pid]| Picture::of(members).without_inodes();
    let whole = take(&workload.family().members());
    let mut dead: Vec<Pid> = whole.pids().into_iter().filter_map(Pid::from_raw).collect();
    dead.extend(lost_leaders(&dead));
    workload.checkpoint()?;
    let engine = workload.engines().1.clone();
    let mut command = engine.restore_command(workload.declaration(), &workload.images());
    let log = workload.images().with_extension("log");
    let stops = count_stops(&mut command, &log).map_err(|e| workload.failure("restore", e.to_string()))?;
    let course = Course { time, stops };
    let mut running = true;
    for _ in 0..blows {
        if running {
            workload.checkpoint()?;
        }
        let before_names = names(&workload);
        let blow = course.blow(chance);
        let mut command = engine.restore_command(workload.declaration(), &workload.images());
        let log = workload.images().with_extension("log");
        let struck = strike(&mut command, &log, blow).map_err(|e| e.to_string());
        explain(&workload, "restore", blow, struck)?;
        let fate = settle(&workload, &whole, take);
        running = explain(&workload, "restore", blow, fate)? == Fate::Unharmed;
        if running {
            explain(&workload, "restore", blow, no_rules(&connections(&workload.family().members())))?;
        }
        if !running {
            let left = workload.bury(dead.clone());
            let seen = all_gone(&left, &workload.images())
                .and_then(|()| no_complaint(&workload))
                .and_then(|()| no_new_names(&workload, &before_names));
            explain(&workload, "restore", blow, seen)?;
        }
    }
    if !running {
        workload.restore()?;
    }
    let left = no_rules(&connections(&workload.family().members()));
    left.map_err(|what| workload.failure("restore", what))?;
    workload.finish()
}
